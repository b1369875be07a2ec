"""Stops a run before a NaN or an infinity in a gradient reaches the weights, and says where it came from.

A rank looks at its own gradient before it is shared, and fails alone; its peers hear of it (`watch`) or find that it is
gone. Where backward averages (DistributedDataParallel), all find what one has sent, and each does its part of the step
again, by itself, to see whether it was its own.

A sum is not finite when one of its terms is not. On a CPU it costs 11 us a step for an MLP, 36 us for `cnn` and 1.8 ms
for ResNet-18 (on one core, 0.1 to 2 % of their steps), a tenth of `isfinite`. On a GPU reading it at once would make
the host wait for the device in every step, so there it is read a step later (`FiniteOneStepLater`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ddp_agent.errors import NonFiniteError
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.internals import internals


class FiniteCheck(Protocol):
    """The loop calls `check_own` before and `check_averaged` after `sync.before_step`; one of them does something.

    `losses` are those of this rank's micro-batches, computed again when they are asked for. After `settle` every step
    so far was finite. All raise NonFiniteError.
    """

    def check_own(self, step: int) -> None: ...
    def check_averaged(self, step: int, losses: Iterable[Tensor]) -> None: ...
    def settle(self) -> None: ...


def finite_check(module: nn.Module, sync: SyncStrategy, loss_sum: Tensor, *, scaled: bool) -> FiniteCheck:
    """`scaled`: a GradScaler skips steps whose gradients are not finite, and that is how it finds its scale.

    `loss_sum` holds this rank's losses, the current step's among them.
    """
    if scaled:
        return Unchecked()
    return FiniteOneStepLater(module, sync, loss_sum) if loss_sum.is_cuda else FiniteGradients(module, sync)


class Unchecked:
    def check_own(self, step: int) -> None: ...
    def check_averaged(self, step: int, losses: Iterable[Tensor]) -> None: ...
    def settle(self) -> None: ...


class FiniteGradients:
    """Before anything of the step is applied."""

    def __init__(self, module: nn.Module, sync: SyncStrategy) -> None:
        self._module, self._parameters = module, list(module.parameters())
        self._world = internals(sync).world
        self._averaged = averages_in_backward(sync)

    def check_own(self, step: int) -> None:
        if not self._averaged and not self._finite():
            raise NonFiniteError(_said(step, self._first([p.grad for p in self._parameters])), self._world.rank, step)

    def check_averaged(self, step: int, losses: Iterable[Tensor]) -> None:
        if not self._averaged or self._finite():
            return
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        for loss in losses:
            own = dict(zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True))
            if found := self._first([own.get(parameter) for parameter in self._parameters]):
                raise NonFiniteError(_said(step, found), self._world.rank, step)
        found = self._first([parameter.grad for parameter in self._parameters])
        raise NonFiniteError(_said(step, f"averaged over ranks {found}, though this rank's own is finite"), None, step)

    def settle(self) -> None: ...

    def _finite(self) -> bool:
        return math.isfinite(
            sum(_sum(parameter.grad).item() for parameter in self._parameters if parameter.grad is not None)
        )

    def _first(self, gradients: Iterable[Tensor | None]) -> str:
        """Names the first gradient that is not finite; empty when all are."""
        for (name, _), gradient in zip(self._module.named_parameters(), gradients, strict=True):
            if gradient is not None and not math.isfinite(value := _sum(gradient).item()):
                return f"the gradient of {name} is {value}"
        return ""


@dataclass(frozen=True)
class _Look:
    """Sums of a step on their way to the host: this rank's losses, then each parameter's gradient."""

    step: int
    sums: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> list[float]:
        if self.arrived:
            self.arrived.synchronize()
        return self.sums.tolist()


class FiniteOneStepLater:
    """Reads the sums of a step after the next one's backward was launched, so that host and device never wait.

    One step too late to keep the weights clean, in time to keep what is not finite from being scored or saved:
    `settle` comes before both. Where backward averages, what is left to tell whose it was is each rank's own loss.
    """

    def __init__(self, module: nn.Module, sync: SyncStrategy, loss_sum: Tensor) -> None:
        self._world, self._averaged, self._loss_sum = internals(sync).world, averages_in_backward(sync), loss_sum
        self._parameters = list(module.parameters())
        self._names = ["the loss", *(f"the gradient of {name}" for name, _ in module.named_parameters())]
        self._pinned = [torch.zeros(len(self._names), pin_memory=loss_sum.is_cuda) for _ in range(2)]
        self._none = torch.zeros((), device=loss_sum.device)
        self._pending: _Look | None = None

    def check_own(self, step: int) -> None:
        if not self._averaged:
            self._look(step)

    def check_averaged(self, step: int, losses: Iterable[Tensor]) -> None:
        if self._averaged:
            self._look(step)

    def settle(self) -> None:
        last, self._pending = self._pending, None
        if last:
            self._judge(last)

    def _look(self, step: int) -> None:
        grads = [parameter.grad for parameter in self._parameters]
        sums = torch.stack([self._loss_sum.float(), *(self._none if g is None else _sum(g).float() for g in grads)])
        sums = self._pinned[step % 2].copy_(sums, non_blocking=True)
        arrived = torch.cuda.current_stream().record_event() if self._loss_sum.is_cuda else None
        before, self._pending = self._pending, _Look(step, sums, arrived)
        if before:
            self._judge(before)

    def _judge(self, look: _Look) -> None:
        sums = look.read()
        bad = [f"{name} is {value}" for name, value in zip(self._names, sums, strict=True) if not math.isfinite(value)]
        if not bad:
            return
        if self._averaged and math.isfinite(sums[0]):
            text = f"in step {look.step} averaged over ranks {bad[0]}, though this rank's loss is finite"
            raise NonFiniteError(f"{text}; nothing from that step on is saved", None, look.step)
        text = f"in step {look.step} {bad[0]}; nothing from that step on is saved"
        raise NonFiniteError(text, self._world.rank, look.step)


def averages_in_backward(sync: SyncStrategy) -> bool:
    return sync.traits.averages_in_backward and internals(sync).world.size > 1


def _sum(gradient: Tensor) -> Tensor:
    """In single precision at least: in half, even a sum of small gradients may be infinite."""
    return gradient.sum(dtype=torch.float32 if gradient.dtype.itemsize < 4 else gradient.dtype)


def _said(step: int, found: str) -> str:
    return f"in step {step} {found}; nothing of that step is applied or saved"
