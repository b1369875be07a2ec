"""Momentum that starts from zeros. torch's fused SGD can start it from memory that nobody wrote."""

from typing import Any

import torch
from torch.optim import SGD, Optimizer


class MomentumStart:
    """A hook before every step of fused SGD that gives each trained parameter without momentum one of zeros.

    From zeros the first step makes momentum the gradient, as torch means to. Without them torch 2.15 allocates momentum
    in the first step and leaves it unwritten if that step is skipped, because fp16 gradients have overflowed. It raises
    TypeError when a parameter gets its first gradient later than another one: after unfreezing, with LayerDrop or early
    exits, and after `optimizer_state=reset`. The other optimizers of torch write their state when they make it.
    Groups with dampening are left alone: their first step does not begin from zeros.
    """

    def __init__(self) -> None:
        self._seen: tuple[Any, int] = None, 0  # the optimizer's state, and how many parameters had one

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        state = optimizer.state
        if state is self._seen[0] and len(state) == self._seen[1]:
            return
        complete = True
        for group in optimizer.param_groups:
            if not group["fused"] or group["momentum"] == 0 or group["dampening"] != 0:
                continue
            for parameter in group["params"]:
                if parameter.grad is None:
                    complete = False
                elif state[parameter].get("momentum_buffer") is None:
                    state[parameter]["momentum_buffer"] = torch.zeros_like(
                        parameter, memory_format=torch.preserve_format
                    )
        self._seen = (state, len(state)) if complete else (None, 0)


def start_momentum_from_zeros(optimizer: Optimizer) -> None:
    """Register the hook with an SGD of torch. It changes nothing for other optimizers, or for steps without the fault.

    A second registration does nothing.
    """
    hooks = optimizer._optimizer_step_pre_hooks.values() if isinstance(optimizer, SGD) else ()
    if isinstance(optimizer, SGD) and not any(isinstance(hook, MomentumStart) for hook in hooks):
        optimizer.register_step_pre_hook(MomentumStart())
