"""Learning-rate schedules: closed forms, warm-up, ends, and torch's own schedulers step by step."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR, StepLR

from ddp_agent.training.schedules import Constant, Cosine, Schedule, Step

TOTAL = 40
WARMUPS = [0, 1, 2, 5, 39, 40]
LR = 0.3


def factors(schedule: Schedule, total_steps: int = TOTAL) -> list[float]:
    """Return the factors of steps 1 to `total_steps`."""
    return [schedule.factor(step, total_steps) for step in range(1, total_steps + 1)]


def every_kind(warmup_steps: int) -> list[Schedule]:
    return [
        Constant(warmup_steps=warmup_steps),
        Cosine(warmup_steps=warmup_steps, final=0.1),
        Step(warmup_steps=warmup_steps, every_steps=7, decay=0.5),
    ]


@pytest.mark.parametrize("warmup", WARMUPS)
def test_warm_up_is_a_line_that_ends_at_one(warmup: int) -> None:
    for schedule in every_kind(warmup):
        found = factors(schedule)
        assert found[:warmup] == pytest.approx([step / warmup for step in range(1, warmup + 1)])
        assert found[max(0, warmup - 1)] == 1.0


def test_one_step_of_warm_up_is_none() -> None:
    assert list(map(factors, every_kind(0))) == list(map(factors, every_kind(1)))


def test_warm_up_postpones_a_decay_and_does_not_cut_it() -> None:
    late = factors(Step(warmup_steps=11, every_steps=5, decay=0.5))
    assert late[10:] == factors(Step(warmup_steps=0, every_steps=5, decay=0.5))[:30]


def test_constant_stays() -> None:
    assert set(factors(Constant(warmup_steps=3))[2:]) == {1.0}


@pytest.mark.parametrize("final", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("warmup", [0, 1, 8])
def test_cosine_is_its_closed_form(warmup: int, final: float) -> None:
    found = factors(Cosine(warmup_steps=warmup, final=final))
    full = max(warmup, 1)
    for step in range(full, TOTAL + 1):
        angle = math.pi * (step - full) / (TOTAL - full)
        assert found[step - 1] == pytest.approx(final + (1 - final) * (1 + math.cos(angle)) / 2)


def test_cosine_starts_at_one_falls_all_the_way_and_stays_there() -> None:
    schedule = Cosine(warmup_steps=4, final=0.2)
    after = factors(schedule)[3:]
    assert after[0] == 1.0
    assert after[-1] == pytest.approx(0.2)
    assert all(before > later for before, later in itertools.pairwise(after))
    assert schedule.factor(TOTAL + 10, TOTAL) == pytest.approx(0.2)


def test_cosine_has_no_jump() -> None:
    """Warm-up rises by 1 / warmup a step; half a cosine over n steps falls by less than pi / 2n at its steepest."""
    changes = [later - before for before, later in itertools.pairwise(factors(Cosine(warmup_steps=10, final=0.0)))]
    assert max(changes) == pytest.approx(1 / 10)
    assert -math.pi / (2 * 30) < min(changes) < -0.9 * math.pi / (2 * 30)


def test_step_decays_after_whole_periods() -> None:
    found = factors(Step(warmup_steps=0, every_steps=10, decay=0.5))
    assert found == [0.5**period for period in range(4) for _ in range(10)]


@pytest.mark.parametrize("total_steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_the_shortest_runs_have_finite_factors(warmup: int, total_steps: int) -> None:
    for schedule in every_kind(warmup):
        assert all(0 < factor <= 1 for factor in factors(schedule, total_steps))


def torch_lrs(make: Callable[[torch.optim.Optimizer], LRScheduler]) -> list[float]:
    """Return the learning rates of torch's scheduler for the same steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer)
    found = []
    for _ in range(TOTAL):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def after_warm_up(
    optimizer: torch.optim.Optimizer, warmup: int, make: Callable[..., LRScheduler], **options: Any
) -> LRScheduler:
    """torch counts warm-up from 0 and has it end where the next begins, so its warm-up is a step shorter."""
    if warmup < 2:
        return make(optimizer, **options)
    rise = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    return SequentialLR(optimizer, [rise, make(optimizer, **options)], milestones=[warmup - 1])


@pytest.mark.parametrize("warmup", [0, 1, 2, 5, 39])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torchs_at_every_step(warmup: int, final: float) -> None:
    fall = {"T_max": TOTAL - max(1, warmup), "eta_min": final * LR}
    expected = torch_lrs(lambda optimizer: after_warm_up(optimizer, warmup, CosineAnnealingLR, **fall))
    assert [LR * factor for factor in factors(Cosine(warmup_steps=warmup, final=final))] == pytest.approx(expected)


@pytest.mark.parametrize("warmup", WARMUPS)
def test_step_is_torchs_at_every_step(warmup: int) -> None:
    expected = torch_lrs(lambda optimizer: after_warm_up(optimizer, warmup, StepLR, step_size=7, gamma=0.5))
    found = factors(Step(warmup_steps=warmup, every_steps=7, decay=0.5))
    assert [LR * factor for factor in found] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: Constant(warmup_steps=-1), "warmup_steps: found -1, expected an integer >= 0"),
        (lambda: Cosine(warmup_steps=0, final=1.5), "final: found 1.5, expected a finite number >= 0 and <= 1"),
        (lambda: Step(warmup_steps=0, every_steps=0, decay=0.1), "every_steps: found 0, expected an integer >= 1"),
        (lambda: Step(warmup_steps=0, every_steps=1, decay=-1), "decay: found -1, expected a finite number >= 0"),
    ],
)
def test_wrong_values_are_refused(make: Callable[[], Schedule], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        make()
