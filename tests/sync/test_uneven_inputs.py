"""Ranks with different numbers of batches, and batches of different sizes."""

from functools import partial
from typing import Any

import pytest
import torch
from loops import Loop, alone, apart, random_batch, refusal, sgd
from mode_cases import ALL, TRAITS
from rank_pool import RankPool
from torch import Tensor, nn

from ddp_agent.reducers import Cast, Dense
from ddp_agent.sync import (
    AllReduce,
    Compressed,
    DiLoCo,
    Gossip,
    Hierarchical,
    Independent,
    LocalSGD,
    ParameterUpdate,
    PostLocalSGD,
    SlowMo,
    StreamingDiLoCo,
    SyncStrategy,
)
from ddp_agent.sync.engine.uneven_inputs import Weighted, common_steps

IN_BACKWARD = [mode for mode, traits in TRAITS.items() if traits.averages_in_backward]


def sized(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Rank 0 has 6 samples, rank 1 has 3, rank 2 has 2."""
    inputs, target = random_batch(step, rank)
    return inputs[: 6 // (rank + 1)], target[: 6 // (rank + 1)]


def all_of_them(step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*(sized(step, other) for other in range(ranks)), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def go(sync: Any, reducer: Any, batches: list[tuple[Tensor, Tensor]]) -> Loop:
    """The loop of uneven.py's docstring."""
    loop = Loop(sync, reducer=reducer, optimizer=sgd(lr=0.1))
    for step in range(1, common_steps(sync, len(batches), loop.topology.world) + 1):
        if step <= len(batches):
            inputs, target = batches[step - 1]
            with sync.backward_context(step, last_micro_batch=True):
                nn.functional.mse_loss(loop.model(inputs), target).backward()
            if isinstance(reducer, Weighted):
                reducer.samples += len(inputs)
        sync.before_step(step)
        loop.optimizer.step()
        sync.after_step(step)
        loop.optimizer.zero_grad()
        loop.step = step
    return loop.flush()


# So set, each applies in every step the mean of what the ranks have done.
WEIGHTED: dict[str, Any] = {
    "compressed": Compressed,
    "local_sgd": partial(LocalSGD, period=1),
    "parameter_update": partial(ParameterUpdate, period=1, combine="mean"),
    "diloco": partial(DiLoCo, period=1, outer_lr=1, outer_momentum=0),
    "slowmo": partial(SlowMo, period=1, slow_momentum=0),
    "streaming_diloco": partial(StreamingDiLoCo, period=1, fragments=1, delay=0, outer_lr=1, outer_momentum=0),
}


def measure_weighted(mode: str, weighted: bool) -> float:
    """Weighted by samples, ranks with batches of 6, 3 and 2 are one rank with all 11."""
    make = WEIGHTED[mode]
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    whole = Loop(Independent(), topology=alone(), batches=partial(all_of_them, ranks=ranks), optimizer=sgd(lr=0.1)).run(
        5
    )
    parts = go(make(), Weighted(Dense()) if weighted else Dense(), [sized(step, rank) for step in range(1, 6)])
    return apart(whole.weights, parts.weights)


@pytest.mark.parametrize("mode", WEIGHTED)
def test_weighted_by_samples_uneven_batches_are_one_big_batch(ranks3: RankPool, mode: str) -> None:
    assert max(ranks3.run(measure_weighted, mode, True)) < 1e-12
    assert max(ranks3.run(measure_weighted, mode, False)) > 1e-3  # control


def measure_run_out(mode: str, weighted: bool, of_rank_1: int) -> tuple[Tensor, int, bool]:
    """Rank 0 has 7 batches."""
    rank = torch.distributed.get_rank()
    batches = [random_batch(step, rank) for step in range(1, 1 + (of_rank_1 if rank else 7))]
    loop = go(ALL[mode](), Weighted(Dense()) if weighted else Dense(), batches)
    return loop.weights, loop.step, bool(loop.weights.isfinite().all())


# Gossip's weights are the graph's, and a hierarchy's two means would each count the same samples.
UNWEIGHTED = [mode for mode, make in ALL.items() if refusal(make(), Weighted(Dense())) is not None]


@pytest.mark.parametrize("of_rank_1", [4, 0])
@pytest.mark.parametrize("mode", [mode for mode in ALL if mode not in IN_BACKWARD])
def test_a_rank_may_run_out_of_batches(ranks2: RankPool, mode: str, of_rank_1: int) -> None:
    weighted = mode not in UNWEIGHTED
    (first, steps, finite), (second, other_steps, other_finite) = ranks2.run(measure_run_out, mode, weighted, of_rank_1)
    assert finite and other_finite
    assert steps == other_steps == 7
    if TRAITS[mode].identical != "never":
        assert torch.equal(first, second)


def measure_last_samples() -> float:
    """Return the distance of the mean from rank 0's weights, after rank 1 has run out of samples."""
    rank = torch.distributed.get_rank()
    loop = Loop(LocalSGD(period=4), reducer=Weighted(Dense()))
    assert isinstance(loop.reducer, Weighted)
    loop.run(3)
    loop.reducer.samples += 6 if rank == 0 else 0
    own = loop.weights
    loop.flush()
    return apart(own, loop.weights)


def test_a_rank_without_samples_does_not_count(ranks2: RankPool) -> None:
    zero, one = ranks2.run(measure_last_samples)
    assert zero == 0.0
    assert one > 1e-3


def measure_nobody() -> float:
    """Return the distance from an unweighted mean, where no rank saw a sample."""
    loop, plain = Loop(LocalSGD(period=3), reducer=Weighted(Dense())), Loop(LocalSGD(period=3))
    return apart(loop.run(6).weights, plain.run(6).weights)


def test_nobodys_samples_are_everybodys(ranks2: RankPool) -> None:
    assert max(ranks2.run(measure_nobody)) == 0.0


def refuse(mode: str, batches_of_rank_1: int) -> str:
    batches = 5 if torch.distributed.get_rank() == 0 else batches_of_rank_1
    try:
        common_steps(ALL[mode](), batches, Loop(Independent()).topology.world)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("mode", IN_BACKWARD)
def test_modes_that_meet_in_backward_refuse_on_every_rank(ranks2: RankPool, mode: str) -> None:
    assert all("found [5, 3] batches on ranks 0 to 1. Cut all to 3" in text for text in ranks2.run(refuse, mode, 3))
    assert ranks2.run(refuse, mode, 5) == ["", ""]


def resume_weighted() -> bool:
    def fresh() -> Loop:
        return Loop(LocalSGD(period=4), reducer=Weighted(Dense()))

    def go_on(loop: Loop, steps: int) -> Loop:
        for _ in range(steps):
            loop.reducer.samples += 1 + loop.topology.world.rank  # type: ignore[attr-defined]
            loop.run(1)
        return loop

    whole = go_on(fresh(), 3)
    weights, sync, reducer = whole.weights, whole.sync.state_dict(), whole.reducer.state_dict()
    expected = go_on(whole, 3).weights
    resumed = fresh()
    resumed.flat.parameters.copy_(weights)
    resumed.sync.load_state_dict(sync)
    resumed.reducer.load_state_dict(reducer)
    resumed.step = 3
    return torch.equal(go_on(resumed, 3).weights, expected)


def test_what_a_rank_has_seen_survives_a_resume(ranks2: RankPool) -> None:
    assert ranks2.run(resume_weighted) == [True, True]


def test_a_weighted_lossy_reducer_is_lossy() -> None:
    assert refusal(LocalSGD(period=2), Weighted(Cast(dtype="bf16"))) is not None


@pytest.mark.parametrize(
    "sync",
    [
        AllReduce(),
        PostLocalSGD(switch_step=1, period=2),
        Hierarchical(node_period=1, global_period=2),
        Hierarchical(node_period=2, global_period=4),
        Gossip(period=1),
    ],
    ids=repr,
)
def test_weights_are_refused_where_they_cannot_count(sync: SyncStrategy) -> None:
    """Inside backward the loop has not said yet how many samples there were; for the others see above."""
    assert "Weighted(Dense())" in str(refusal(sync, Weighted(Dense())))
