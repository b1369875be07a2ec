"""Stops a run before a NaN or an infinity in a gradient reaches the weights, and says where it came from.

A rank looks at its own gradient before it is shared, and fails alone; its peers hear of it (`watch`) or find that it is
gone. Where backward averages (DistributedDataParallel), all find what one has sent, and each does its part of the step
again, by itself, to see whether it was its own.

A sum is not finite when one of its terms is not. It costs 8 us a step for an MLP, 36 us for `cnn` and 1.8 ms for
ResNet-18 (on one core, 0.1 to 1 % of their steps), a tenth of `isfinite`; on a GPU the host waits for it.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ddp_agent.errors import NonFiniteError
from ddp_agent.sync.base import SyncStrategy


class FiniteGradients:
    """The loop calls `check_own` before and `check_averaged` after `sync.before_step`; one of them does something.

    `scaled`: a GradScaler skips steps whose gradients are not finite, and that is how it finds its scale.
    """

    def __init__(self, module: nn.Module, sync: SyncStrategy, *, scaled: bool) -> None:
        self._scaled = scaled
        self._module, self._parameters = module, list(module.parameters())
        self._world = sync.topology.world
        self._averaged = sync.reduces_in_backward and self._world.size > 1

    def check_own(self, step: int) -> None:
        if not self._averaged and not self._finite():
            raise NonFiniteError(_said(step, self._first([p.grad for p in self._parameters])), self._world.rank, step)

    def check_averaged(self, step: int, losses: Iterable[Tensor]) -> None:
        """`losses` are those of this rank's micro-batches, computed again when they are asked for."""
        if not self._averaged or self._finite():
            return
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        for loss in losses:
            own = dict(zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True))
            if found := self._first([own.get(parameter) for parameter in self._parameters]):
                raise NonFiniteError(_said(step, found), self._world.rank, step)
        found = self._first([parameter.grad for parameter in self._parameters])
        raise NonFiniteError(_said(step, f"averaged over ranks {found}, though this rank's own is finite"), None, step)

    def _finite(self) -> bool:
        return self._scaled or math.isfinite(_sum([parameter.grad for parameter in self._parameters]))

    def _first(self, gradients: Iterable[Tensor | None]) -> str:
        """Names the first gradient that is not finite; empty when all are."""
        for (name, _), gradient in zip(self._module.named_parameters(), gradients, strict=True):
            if not math.isfinite(value := _sum([gradient])):
                return f"the gradient of {name} is {value}"
        return ""


def _sum(gradients: Iterable[Tensor | None]) -> float:
    sums = [gradient.sum(dtype=_wide(gradient)) for gradient in gradients if gradient is not None]
    return torch.stack(sums).sum().item() if sums else 0.0


def _wide(tensor: Tensor) -> torch.dtype:
    """Single precision at least: in half, even a sum of small gradients may be infinite."""
    return torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype


def _said(step: int, found: str) -> str:
    return f"in step {step} {found}; nothing of that step is applied or saved"
