"""The order in which ranks take the samples of their shards."""

import hashlib
import itertools
from typing import Any

import pytest
import torch
from configs import CONF, settings
from shard_cases import CPU, DRAWN, SHARDED, attributes, sliced
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ddp_agent.data.loader import Share, micro_batches
from ddp_agent.data.sample_order import Order, SampleOrder, ShardOrder
from ddp_agent.data.task import Data


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("name", SHARDED)
def test_a_rank_goes_round_its_own_shard(name: str, drawn: str) -> None:
    """Each round is the whole shard in another order, as far as the epoch lasts."""
    samples, ranks = attributes(37), 3
    slicing = sliced(name, drawn=drawn, **({"alpha": 3.0} if name == "dirichlet" else {}))
    for rank in range(ranks):
        order = slicing.order(samples, 2, rank, ranks)
        assert isinstance(order, ShardOrder)
        rounds: list[tuple[int, ...]] = []
        for epoch in range(3):
            begin, end = (0, 90) if drawn == "once" else (epoch * 37 // ranks, (epoch + 1) * 37 // ranks)
            shard = slicing.shards(samples, ranks, 2, epoch)[rank].tolist()
            taken = order.take(begin, end - begin).tolist()
            whole = [taken[i : i + len(shard)] for i in range(0, len(taken), len(shard))]
            assert all(sorted(each) == shard for each in whole[:-1])
            assert set(whole[-1]) <= set(shard) and len(set(whole[-1])) == len(whole[-1])
            rounds += [tuple(each) for each in whole if len(each) == len(shard)]
        if drawn == "once":
            rounds = rounds[: len(rounds) // 3]  # the three looks were at the same positions
        assert len(set(rounds)) == len(rounds) or len(shard) < 4


@pytest.mark.parametrize("drawn", DRAWN)
def test_what_stands_at_a_position_does_not_depend_on_what_was_taken_before(drawn: str) -> None:
    samples, slicing = attributes(41), sliced("by_label", drawn=drawn)
    whole = slicing.order(samples, 3, 1, 3).take(0, 120)
    used = slicing.order(samples, 3, 1, 3)
    for start, count in [(100, 20), (0, 5), (13, 2), (37, 50), (12, 1), (0, 120)]:
        assert torch.equal(used.take(start, count), whole[start : start + count])
        assert torch.equal(slicing.order(samples, 3, 1, 3).take(start, count), whole[start : start + count])


class Streamed(Dataset[tuple[Tensor, int]]):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(index)]), index


def taken(dataset: Dataset[Any], order: Order, rank: int, ranks: int, first_step: int) -> list[list[int]]:
    batches = micro_batches(
        Data(train=dataset, test=dataset, input_shape=(), sha256=""),
        order,
        Share(rank, ranks, micro_batch=3, accumulation=2),
        steps=range(first_step, 10),
        device=CPU,
    )
    return [targets.tolist() for _, targets in batches]


@pytest.mark.parametrize("name", SHARDED)
def test_ranks_take_equal_steps_resident_or_streamed_from_any_step(name: str) -> None:
    samples, ranks = attributes(37), 3
    resident = TensorDataset(torch.arange(37.0).unsqueeze(1), torch.arange(37))
    slicing = sliced(name, **({"alpha": 3.0} if name == "dirichlet" else {}))
    for rank in range(ranks):
        order = slicing.order(samples, 0, rank, ranks)
        whole = taken(resident, order, rank, ranks, 1)
        assert [len(batch) for batch in whole] == [3] * 18
        assert list(itertools.chain.from_iterable(whole)) == order.take(0, 54).tolist()
        for first_step in (1, 4, 9):
            for dataset in (resident, Streamed(37)):
                assert taken(dataset, order, rank, ranks, first_step) == whole[2 * (first_step - 1) :]


def test_the_default_order_is_what_it_was_before_there_were_shards() -> None:
    """The order follows the documented formula, which is written again here."""
    assert "slicing: shared" in (CONF / "config.yaml").read_text()
    order = settings().slicing.order(attributes(41), 3, rank=1, ranks=2)
    digest = hashlib.sha256(b"3/41/12")
    for epoch in range(2):
        seed = int.from_bytes(hashlib.sha256(f"sample order/3/{epoch}".encode()).digest()[:8], "big") >> 1
        digest.update(torch.randperm(41, generator=torch.Generator().manual_seed(seed)).numpy().tobytes())
    assert order.sha256(12) == digest.hexdigest() == SampleOrder(41, 3).sha256(12)


def test_the_order_s_hash_covers_the_slicing() -> None:
    samples = attributes(41)

    def sha256(name: str, seed: int = 3, ranks: int = 2, rank: int = 0, batch: int = 12, **values: Any) -> str:
        order: Order = sliced(name, **values).order(samples, seed, rank, ranks)
        return order.sha256(batch)

    different = [
        sha256("shared"),
        *(sha256(name, drawn=drawn) for name in ("iid", "by_label", "by_group") for drawn in DRAWN),
        *(sha256("dirichlet", alpha=alpha) for alpha in (2.0, 3.0)),
        sha256("iid", seed=4),
        sha256("iid", ranks=3),
        sha256("iid", batch=6),
    ]
    assert len(set(different)) == len(different)
    assert sha256("iid") == sha256("iid", rank=1) == different[1]
