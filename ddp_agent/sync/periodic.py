"""Sync modes with a period: bases for modes that synchronise after every H steps."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.config.fields import PositiveInt
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.base import SyncStrategy, mean_
from ddp_agent.sync.cadences.base import Cadence, CadenceContext
from ddp_agent.sync.cadences.fixed import Fixed
from ddp_agent.sync.engine.state_policies import (
    OptimizerPolicy,
    merge_optimizer_state_,
    start_merging_buffers,
)

DRIFT_SAMPLES = 4096  # parameters from which the distance between ranks is estimated


@dataclass(kw_only=True, eq=False)
class Paced(SyncStrategy):
    """A mode that synchronises after every H optimizer steps, and at the end what is left of a period.

    H begins as `base_period`; `cadence` looks at it anew right after a synchronisation, and never between.
    """

    cadence: Cadence = field(default_factory=Fixed)
    optimizer_state: OptimizerPolicy = "local"

    current_period: int = field(init=False, repr=False)  # H(t)
    synced_step: int = field(init=False, repr=False)  # where the current period began

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        model = super().setup(model, optimizer, topology, reducer)
        self.current_period = self.base_period
        self._begin_period(self.first_step)
        return model

    def loss_refusal(self) -> str | None:
        return super().loss_refusal() if self.reduces_in_backward else None

    @property
    def base_period(self) -> int:
        raise NotImplementedError

    @property
    def first_step(self) -> int:
        """How many steps have passed when the first period begins."""
        return 0

    def due(self, step: int) -> bool:
        return step >= self.synced_step + self.current_period  # later only where a loop does not begin with step 1

    def after_step(self, step: int) -> None:
        if self.due(step):
            self._synchronise(step)

    def flush(self, step: int) -> None:
        if step > self.synced_step:
            self._synchronise(step)

    @torch.no_grad()
    def _synchronise(self, step: int) -> None:
        drift = self._drift() if self.cadence.measures_drift else None
        self.merge_parameters_()
        merge_optimizer_state_(self.optimizer, self.flat, self.optimizer_state, self.topology.world)
        self.syncs += 1
        self._begin_period(step, drift)

    def _begin_period(self, step: int, drift: float | None = None) -> None:
        lr = float(self.optimizer.param_groups[0]["lr"])
        now = CadenceContext(step=step, period=self.current_period, base=self.base_period, lr=lr, drift=drift)
        self.synced_step, self.current_period = step, self.fitting(self.cadence.next_period(now))

    def fitting(self, period: int) -> int:
        """The period this mode can have that is nearest to what the cadence wants."""
        return period

    def _drift(self) -> float:
        """The ranks' relative distance, from some evenly spaced parameters: 32 kB, which are counted."""
        every = math.ceil(self.flat.parameters.numel() / DRIFT_SAMPLES)
        sample = self.flat.parameters[::every].double()
        sums = torch.cat([sample, sample.square().sum().unsqueeze(0)])
        mean_(sums, self.topology.world)
        mean, mean_square = sums[:-1].square().sum().item(), sums[-1].item()
        return math.sqrt(max(0.0, mean_square - mean) / mean) if mean else 0.0

    def measurements(self) -> dict[str, float]:
        return {"period": self.current_period}

    def state_dict(self) -> dict[str, Any]:
        return {"current_period": self.current_period, "synced_step": self.synced_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.current_period, self.synced_step = state["current_period"], state["synced_step"]

    def merge_parameters_(self) -> None:
        """The mode itself: parameters and buffers change on all ranks."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class Periodic(Paced):
    """A mode whose H is its `period`."""

    period: PositiveInt  # H, or where H begins

    @property
    def base_period(self) -> int:
        return self.period


@dataclass(kw_only=True, eq=False)
class Anchored(Periodic):
    """A periodic mode that sends changes since the anchor, the parameters that all ranks last shared."""

    sends: ClassVar[Literal["changes"]] = "changes"

    anchor: Tensor = field(init=False, repr=False)
    _changes: Reducer = field(init=False, repr=False)
    _pseudo_gradient: Tensor = field(init=False, repr=False)

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        model = super().setup(model, optimizer, topology, reducer)
        self.anchor = self.flat.parameters.clone()
        self._changes = reducer.for_tensor(self.flat.shapes)
        self._pseudo_gradient = torch.empty_like(self.anchor)  # kept: a fresh one costs as much as averaging it
        return model

    def common(self, step: int) -> Tensor | None:
        return self.anchor

    def merge_parameters_(self) -> None:
        torch.sub(self.anchor, self.flat.parameters, out=self._pseudo_gradient)
        finish_buffers = start_merging_buffers(self.flat, self.buffers, self.topology.world)
        self._changes.mean_(self._pseudo_gradient, self.topology.world)
        finish_buffers()
        self.outer_step_(self._pseudo_gradient)
        self.flat.parameters.copy_(self.anchor)

    def outer_step_(self, pseudo_gradient: Tensor) -> None:
        """Moves the anchor by D, the mean pseudo-gradient (anchor - parameters), which it may overwrite."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"anchor": self.anchor.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.anchor.copy_(state["anchor"])
