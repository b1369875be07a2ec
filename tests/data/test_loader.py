"""The sample stream: every sample once an epoch, the same for any number of ranks, exact from any step."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ddp_agent.data.loader import Batch, Share, micro_batches, stream
from ddp_agent.data.sample_order import SampleOrder
from ddp_agent.data.task import Data
from ddp_agent.errors import DataError
from ddp_agent.rng import mixed_seed

CPU = torch.device("cpu")
SPLITS = [(1, 12, 1), (1, 4, 3), (2, 6, 1), (2, 3, 2), (3, 4, 1), (4, 3, 1), (6, 1, 2), (12, 1, 1)]
"""world_size, micro_batch, accumulation: all make a global batch of 12."""


class Numbered(Dataset[tuple[Tensor, int]]):
    """Sample i is (i, 2i): map-style, so that it is streamed."""

    def __init__(self, samples: int, bad: int | None = None) -> None:
        self.samples, self.bad = samples, bad

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.bad:
            raise DataError(f"{index}.png: found no readable image")
        return torch.tensor([float(index)]), 2 * index


class Noisy(Numbered):
    """Sample i is noise: drawn in the worker."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1), index


def resident(samples: int) -> TensorDataset:
    return TensorDataset(torch.arange(samples).float().unsqueeze(1), 2 * torch.arange(samples))


def batches(
    dataset: Dataset[Any],
    *,
    rank: int = 0,
    world_size: int = 1,
    micro_batch: int = 12,
    accumulation: int = 1,
    first_step: int = 1,
    last_step: int = 10,
    workers: int = 0,
    device: torch.device = CPU,
) -> list[Batch]:
    return list(
        micro_batches(
            Data(train=dataset, test=dataset, input_shape=(), workers=workers, sha256=""),
            SampleOrder(len(dataset), seed=3),  # type: ignore[arg-type]
            Share(rank, world_size, micro_batch, accumulation),
            steps=range(first_step, last_step + 1),
            device=device,
        )
    )


def steps(samples: int, world_size: int, micro_batch: int, accumulation: int, last_step: int) -> list[list[int]]:
    """The samples of each step over all ranks, rank by rank, in the order in which they are used."""
    ranks = [
        [
            inputs.flatten().tolist()
            for inputs, _ in batches(
                resident(samples),
                rank=rank,
                world_size=world_size,
                micro_batch=micro_batch,
                accumulation=accumulation,
                last_step=last_step,
            )
        ]
        for rank in range(world_size)
    ]
    assert all(len(micro) == micro_batch for rank in ranks for micro in rank)
    return [
        [int(i) for rank in ranks for micro in rank[step * accumulation :][:accumulation] for i in micro]
        for step in range(last_step)
    ]


@pytest.mark.parametrize("samples", [12, 36, 37, 41, 7])
@pytest.mark.parametrize(("world_size", "micro_batch", "accumulation"), SPLITS)
def test_every_sample_exactly_once_an_epoch(samples: int, world_size: int, micro_batch: int, accumulation: int) -> None:
    epochs = 4
    found = steps(samples, world_size, micro_batch, accumulation, last_step=samples * epochs // 12)
    used = list(itertools.chain.from_iterable(found))
    for epoch in range(len(used) // samples):
        assert sorted(used[epoch * samples :][:samples]) == list(range(samples))


@pytest.mark.parametrize(("world_size", "micro_batch", "accumulation"), SPLITS)
def test_the_samples_of_a_step_do_not_depend_on_the_number_of_ranks(
    world_size: int, micro_batch: int, accumulation: int
) -> None:
    assert steps(41, world_size, micro_batch, accumulation, last_step=9) == steps(41, 1, 12, 1, last_step=9)


def test_targets_stay_with_their_inputs() -> None:
    for inputs, targets in batches(resident(41)):
        assert torch.equal(targets, 2 * inputs.flatten().long())


@pytest.mark.parametrize("make", [resident, Numbered])
def test_exact_from_any_first_step(make: type[Numbered]) -> None:
    whole = batches(make(41), rank=1, world_size=2, micro_batch=3, accumulation=2)
    for first_step in range(1, 11):
        rest = batches(make(41), rank=1, world_size=2, micro_batch=3, accumulation=2, first_step=first_step)
        assert len(rest) == 2 * (11 - first_step)
        assert all(torch.equal(a, b) for a, b in zip(flat(rest), flat(whole[-len(rest) :]), strict=True))


def flat(found: list[Batch]) -> list[Tensor]:
    return list(itertools.chain.from_iterable(found))


def test_a_batch_may_straddle_epochs() -> None:
    order = SampleOrder(10, seed=0)
    epochs = torch.cat([SampleOrder(10, seed=0).permutation(epoch) for epoch in range(5)])
    for start, count in [(0, 10), (8, 4), (9, 1), (9, 2), (5, 30), (19, 21), (0, 50)]:
        assert torch.equal(order.take(start, count), epochs[start : start + count])


def test_ranks_and_steps_draw_other_numbers_in_workers_and_a_repetition_the_same() -> None:
    def noise(rank: int, first_step: int) -> list[float]:
        found = batches(
            Noisy(48), rank=rank, world_size=2, micro_batch=6, first_step=first_step, last_step=3, workers=1
        )
        return torch.cat([inputs for inputs, _ in found]).flatten().tolist()

    drawn = [noise(rank, step) for rank in (0, 1) for step in (1, 2)]
    assert len({tuple(numbers[:6]) for numbers in drawn}) == 4
    assert drawn[0] == noise(0, 1)


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(SampleOrder(50, seed).permutation(epoch).tolist()) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    seeds = [mixed_seed(seed, epoch) for seed in range(50) for epoch in range(50)]
    assert len(set(seeds)) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_order_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(resident(41))
    batches(Numbered(41))
    batches(Numbered(41), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_sha256_tells_orders_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = SampleOrder(41, 3).sha256(12)
    used = SampleOrder(41, 3)
    used.take(100, 5)
    assert used.sha256(12) == reference
    assert len({reference, SampleOrder(41, 4).sha256(12), SampleOrder(42, 3).sha256(12), used.sha256(13)}) == 4
    monkeypatch.setattr(torch, "randperm", lambda samples, generator: torch.arange(samples))
    assert SampleOrder(41, 3).sha256(12) != reference


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_is_resident(workers: int) -> None:
    options = {"rank": 1, "world_size": 3, "micro_batch": 2, "accumulation": 2}
    streamed = flat(batches(Numbered(41), workers=workers, **options))  # type: ignore[arg-type]
    kept = flat(batches(resident(41), **options))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(streamed, kept, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_one_clear_message(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        list(stream(Numbered(6, bad=4), [[0, 1], [3, 4]], device=CPU, workers=workers))
    assert str(caught.value) == "4.png: found no readable image"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_resident_on_gpu_without_waiting() -> None:
    kept = flat(batches(resident(41)))
    order = SampleOrder(41, seed=3)
    found = micro_batches(
        Data(train=resident(41), test=resident(41), input_shape=(), sha256=""),
        order,
        Share(rank=0, world_size=1, micro_batch=12),
        steps=range(1, 11),
        device=torch.device("cuda"),
    )
    first = next(found)
    torch.cuda.set_sync_debug_mode("error")  # raises at any wait of the host for the device
    try:
        rest = list(found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(flat([first, *rest]), kept, strict=True))
