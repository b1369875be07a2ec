"""Gradients whose sums are read a step later, as on a GPU: whose, which and when is still told, and before a save."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ddp_agent.errors import NonFiniteError
from ddp_agent.sync.base import SyncStrategy, SyncTraits
from ddp_agent.training.nan_guard import DelayedNanGuard, ImmediateNanGuard, NanGuard, nan_guard


def sync_of_two(*, averaged: bool) -> Any:
    """Return a mode on rank 1 of two, which knows of its run no more than the guard asks for."""
    sync: Any = SyncStrategy()
    sync._traits = SyncTraits(averages_in_backward=averaged)
    sync._flat, sync._topology = None, SimpleNamespace(world=SimpleNamespace(size=2, rank=1))
    return sync


class Steps:
    """A rank's loop, whose gradients and losses are put in by hand."""

    def __init__(self, *, averaged: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).to(dtype)
        self.loss_sum = torch.zeros(())
        self.check = DelayedNanGuard(self.model, sync_of_two(averaged=averaged), self.loss_sum)

    def take(self, step: int, *, loss: float = 1.0, size: float = 1.0, bad: tuple[str, float] | None = None) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.grad = torch.full_like(parameter, size)
            if bad and bad[0] == name:
                parameter.grad.view(-1)[-1] = bad[1]
        self.loss_sum += loss
        self.check.check_own(step)
        self.check.check_averaged(step, [])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_is_told_of_in_the_next_step(bad: float) -> None:
    steps = Steps()
    steps.take(1)
    steps.take(2)
    steps.take(3, bad=("1.weight", bad))
    with pytest.raises(NonFiniteError, match=rf"in step 3 the gradient of 1\.weight is {bad}") as told:
        steps.take(4)
    assert (told.value.rank, told.value.step) == (1, 3)


def test_settling_leaves_nothing_unread() -> None:
    steps = Steps()
    steps.take(1)
    steps.check.settle()
    steps.take(2, bad=("0.bias", math.inf))
    with pytest.raises(NonFiniteError, match=r"in step 2 the gradient of 0\.bias is inf"):
        steps.check.settle()
    steps.check.settle()  # and is read once


def test_a_parameter_without_a_gradient_is_passed_over() -> None:
    steps = Steps()
    steps.take(1)
    steps.model[0].weight.grad = None
    steps.model[1].bias.grad.fill_(math.nan)  # type: ignore[union-attr,operator]
    steps.check.check_own(2)
    with pytest.raises(NonFiniteError, match=r"the gradient of 1\.bias is nan"):
        steps.check.settle()


def test_an_averaged_gradient_is_laid_to_the_rank_whose_loss_is_not_finite() -> None:
    culprit, innocent = Steps(averaged=True), Steps(averaged=True)
    culprit.take(1, loss=math.nan, bad=("0.weight", math.nan))
    innocent.take(1, bad=("0.weight", math.nan))
    with pytest.raises(NonFiniteError, match="in step 1 the loss is nan") as told:
        culprit.check.settle()
    assert told.value.rank == 1
    with pytest.raises(NonFiniteError, match=r"averaged over ranks the gradient of 0\.weight is nan") as told:
        innocent.check.settle()
    assert told.value.rank is None


def test_sums_of_half_precision_do_not_overflow() -> None:
    steps = Steps(dtype=torch.float16)
    steps.take(1, size=60000.0)
    steps.check.settle()


def test_which_guard_a_run_gets() -> None:
    model, sync, loss_sum = nn.Linear(1, 1), sync_of_two(averaged=False), torch.zeros(())
    assert type(nan_guard(model, sync, loss_sum, scaled=False)) is ImmediateNanGuard
    assert type(nan_guard(model, sync, loss_sum, scaled=True)) is NanGuard
