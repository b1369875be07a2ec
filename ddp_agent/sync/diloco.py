"""An outer optimizer over the mean change of the ranks."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.config.fields import Fraction, NonNegativeFloat
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.base import SyncTraits
from ddp_agent.sync.periodic import Anchored


@dataclass(kw_only=True, eq=False)
class DiLoCo(Anchored):
    """Outer SGD with Nesterov momentum on the mean change over H steps (Douillard et al. 2023, arXiv:2311.08105)."""

    outer_lr: NonNegativeFloat = 0.7
    outer_momentum: Fraction = 0.9
    nesterov: bool = True

    _momentum: Tensor = field(init=False, repr=False)

    @property
    def traits(self) -> SyncTraits:
        return replace(super().traits, acts_alone=(self.outer_lr, self.outer_momentum) != (1, 0))

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        model = super().setup(model, optimizer, topology, reducer)
        self._momentum = torch.zeros_like(self.anchor)
        return model

    def outer_step_(self, pseudo_gradient: Tensor) -> None:
        outer_sgd_(self.anchor, self._momentum, pseudo_gradient, self.outer_lr, self.outer_momentum, self.nesterov)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"momentum": self._momentum.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._momentum.copy_(state["momentum"])


def outer_sgd_(
    anchor: Tensor, buffer: Tensor, pseudo_gradient: Tensor, lr: float, momentum: float, nesterov: bool
) -> None:
    """Step as torch.optim.SGD: b <- m b + D; anchor <- anchor - lr (D + m b), or - lr b without Nesterov. D is lost."""
    buffer.mul_(momentum).add_(pseudo_gradient)
    direction = pseudo_gradient.add_(buffer, alpha=momentum) if nesterov else buffer
    anchor.sub_(direction, alpha=lr)
