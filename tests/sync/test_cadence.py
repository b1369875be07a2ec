"""Changes of H: the steps of synchronisation in all modes with a period, and after a resume."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from loops import Loop, sgd, train
from mode_cases import ALL
from rank_pool import RankPool
from test_mode_resume import resume_everywhere_with

from ddp_agent.sync import DiLoCo, Hierarchical, LocalSGD, PostLocalSGD, SlowMo, StreamingDiLoCo, SyncStrategy
from ddp_agent.sync.cadences.base import Cadence, CadenceContext
from ddp_agent.sync.cadences.drift import Drift
from ddp_agent.sync.cadences.fixed import Fixed
from ddp_agent.sync.cadences.linear import Linear
from ddp_agent.sync.cadences.qsr import QSR

PACED = [mode for mode, make in ALL.items() if make().traits.has_period]


def at(step: int, **known: Any) -> CadenceContext:
    return CadenceContext(**{"step": step, "period": 4, "base": 4, "lr": 0.1, **known})


def sync_steps(sync: SyncStrategy, steps: int, lr: Callable[[int], float] = lambda step: 0.1) -> list[int]:
    """Return the steps after which ranks synchronised."""
    loop = Loop(sync)
    found = []
    for step in range(1, steps + 1):
        loop.optimizer.param_groups[0]["lr"] = lr(step)
        before = loop.syncs
        if loop.run(1).syncs > before:
            found.append(step)
    return found


def halving(step: int) -> float:
    return 0.1 if step <= 4 else 0.05


@pytest.mark.parametrize(
    ("cadence", "lr", "expected"),
    [
        (Fixed(), None, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        # 2 + 4 step / 12, rounded: 2.67 after step 2, 3.67 after 5, 5 after 9, 6 after 14
        (Linear(final_period=6, steps=12), None, [2, 5, 9, 14, 20]),
        (Linear(final_period=1, steps=4), None, [2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]),
        # (0.2 / 0.1)^2 = 4, then (0.2 / 0.05)^2 = 16 as soon as a synchronisation sees the lower rate
        (QSR(alpha=0.2), halving, [4, 8]),
        (QSR(alpha=0.1), None, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (QSR(alpha=0.2, warmup_steps=3), None, [2, 4, 8, 12, 16, 20]),
    ],
)
def test_when_ranks_synchronise(ranks2: RankPool, cadence: Cadence, lr: Any, expected: list[int]) -> None:
    arguments = (lr,) if lr else ()
    assert ranks2.run(local_sgd_steps, cadence, *arguments) == [expected] * 2


def local_sgd_steps(cadence: Cadence, *lr: Any) -> list[int]:
    return sync_steps(LocalSGD(period=2, cadence=cadence), 20, *lr)


CONSTANT = [
    Linear(final_period=4, steps=100),
    QSR(alpha=0.1),
    QSR(alpha=100.0, warmup_steps=100),
    Drift(target=1e9, max_period=4),
]


def measure_constant(mode: str, cadence: Cadence) -> bool:
    def make(cadence: Cadence) -> SyncStrategy:
        make_mode: Any = ALL[mode]
        return make_mode(cadence=cadence)  # type: ignore[no-any-return]

    optimizer = sgd(momentum=0.9)
    return torch.equal(train(make(cadence), 11, optimizer=optimizer), train(make(Fixed()), 11, optimizer=optimizer))


@pytest.mark.parametrize("cadence", CONSTANT)
@pytest.mark.parametrize("mode", PACED)
def test_with_constant_parameters_it_is_the_fixed_period(ranks2: RankPool, mode: str, cadence: Cadence) -> None:
    assert ranks2.run(measure_constant, mode, cadence) == [True, True]


# Not hierarchical: in these pools all ranks are one node, whose own period does not change.
@pytest.mark.parametrize("mode", [mode for mode in PACED if mode != "hierarchical"])
def test_control_another_period_is_something_else(ranks2: RankPool, mode: str) -> None:
    assert ranks2.run(measure_constant, mode, Linear(final_period=8, steps=4)) == [False, False]


CADENCED: dict[str, Any] = {
    "local_sgd": partial(LocalSGD, period=2, cadence=Linear(final_period=4, steps=8)),
    "diloco": partial(DiLoCo, period=2, cadence=QSR(alpha=0.18)),
    "post_local_sgd": partial(PostLocalSGD, switch_step=2, period=1, cadence=Linear(final_period=4, steps=8)),
    "slowmo": partial(SlowMo, period=2, cadence=Drift(target=0.05, max_period=5)),
    "hierarchical": partial(Hierarchical, node_period=2, global_period=2, cadence=Linear(final_period=5, steps=8)),
    "streaming_diloco": partial(
        StreamingDiLoCo, period=2, fragments=2, delay=0, cadence=Linear(final_period=6, steps=8)
    ),
}


def resume_cadenced(mode: str) -> list[int]:
    return resume_everywhere_with(CADENCED[mode], "dense")


@pytest.mark.parametrize("mode", CADENCED)
def test_a_schedule_of_periods_survives_a_resume_at_every_step(ranks2: RankPool, mode: str) -> None:
    assert ranks2.run(resume_cadenced, mode) == [[], []]


def hold_drift(target: float) -> tuple[list[float], list[int]]:
    """Drift before each synchronisation, measured from all parameters by another way, and the periods."""
    loop = Loop(LocalSGD(period=4, cadence=Drift(target=target, max_period=64)), optimizer=sgd(lr=0.05))
    sync = loop.sync
    assert isinstance(sync, LocalSGD)
    drifts, periods = [], []
    for _ in range(400):
        ahead = loop.step + 1 == sync._synced_step + sync._current_period
        if ahead:
            periods.append(sync._current_period)
        loop.run(1)
        if not ahead:
            mean = loop.weights
            loop.topology.world.all_reduce_(mean)
            drifts.append(sync.consensus_distance() / (mean / loop.topology.world.size).norm().item())
    return drifts, periods


def test_drift_holds_the_distance_at_its_target(ranks2: RankPool) -> None:
    """A smaller target means shorter periods on every rank alike, and smaller distances."""
    near, far = ranks2.run(hold_drift, 0.02), ranks2.run(hold_drift, 0.08)
    assert near[0][1] == near[1][1]
    assert sum(near[0][1][5:]) / len(near[0][1][5:]) < sum(far[0][1][5:]) / len(far[0][1][5:])
    for (drifts, _), target in ((near[0], 0.02), (far[0], 0.08)):
        later = drifts[len(drifts) // 2 :]
        assert target / 2 < sum(later) / len(later) < target * 2


def estimated_drift() -> tuple[float, float, int]:
    loop = Loop(LocalSGD(period=64)).run(5)
    sync = loop.sync
    assert isinstance(sync, LocalSGD)
    mean = loop.weights
    loop.topology.world.all_reduce_(mean)
    exact = sync.consensus_distance() / (mean / loop.topology.world.size).norm().item()
    before = loop.topology.world.stats.payload_bytes
    return sync._drift(), exact, loop.topology.world.stats.payload_bytes - before


def test_drift_is_the_relative_consensus_distance_and_is_counted(ranks3: RankPool) -> None:
    for measured, exact, payload in ranks3.run(estimated_drift):
        assert measured == pytest.approx(exact, rel=1e-6)
        assert payload == (39 + 1) * 8


def test_what_a_cadence_answers() -> None:
    assert Drift(target=0.1).next_period(at(8, drift=0.05)) == 8
    assert Drift(target=0.1).next_period(at(8, drift=0.08)) == 5
    assert Drift(target=0.1).next_period(at(8, drift=10.0)) == 2
    assert Drift(target=0.1).next_period(at(8, drift=0.0)) == 8
    assert Drift(target=0.1).next_period(at(8, drift=math.nan)) == 4
    assert Drift(target=0.1).next_period(at(8, period=1, drift=10.0)) == 1
    assert QSR(alpha=0.2).next_period(at(8, lr=0.0)) == 2**31
    to_the_end = QSR(alpha=0.2, total_steps=20)
    assert to_the_end.next_period(at(8, lr=0.0)) == 12
    assert to_the_end.next_period(at(18, lr=0.01)) == 4
    assert Linear(final_period=8, steps=10).next_period(at(99)) == 8
    with pytest.raises(ValueError, match="Linear: steps: found None"):
        Linear(final_period=8).next_period(at(1))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (partial(Linear, final_period=0), "final_period"),
        (partial(Linear, final_period=2, steps=0), "steps"),
        (partial(QSR, alpha=0.0), "alpha"),
        (partial(Drift, target=-1.0), "target"),
        (partial(Drift, target=math.nan), "target"),
    ],
)
def test_values_out_of_range(make: Any, field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: found"):
        make()


def test_streaming_keeps_whole_fragments() -> None:
    sync = StreamingDiLoCo(period=8, fragments=4, delay=1)
    assert [sync._fitting(period) for period in (1, 8, 9, 11, 16)] == [8, 8, 8, 12, 16]
