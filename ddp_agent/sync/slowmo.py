"""Slow momentum over periods of local steps."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.config.fields import Decay, NonNegativeFloat
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.base import SyncTraits
from ddp_agent.sync.periodic import Anchored


@dataclass(kw_only=True, eq=False)
class SlowMo(Anchored):
    """Momentum on the mean change over H steps, in units of the learning rate (Wang et al. 2020, arXiv:1910.00643)."""

    slow_lr: NonNegativeFloat = 1.0  # alpha
    slow_momentum: Decay = 0.5  # beta

    _momentum: Tensor = field(init=False, repr=False)  # u, a sum of gradients

    @property
    def traits(self) -> SyncTraits:
        return replace(super().traits, acts_alone=(self.slow_lr, self.slow_momentum) != (1, 0))

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        model = super().setup(model, optimizer, topology, reducer)
        self._momentum = torch.zeros_like(self.anchor)
        return model

    def outer_step_(self, pseudo_gradient: Tensor) -> None:
        """Step: u <- beta u + D / g; anchor <- anchor - alpha g u. g is the learning rate of the step just done."""
        lr = float(self._optimizer.param_groups[0]["lr"])
        self._momentum.mul_(self.slow_momentum)
        if lr > 0:
            self._momentum.add_(pseudo_gradient, alpha=1 / lr)
            self.anchor.sub_(self._momentum, alpha=self.slow_lr * lr)
        else:  # D / g is undefined: apply the change directly
            self.anchor.sub_(pseudo_gradient, alpha=self.slow_lr)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"momentum": self._momentum.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._momentum.copy_(state["momentum"])
