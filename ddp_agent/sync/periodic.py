"""Base classes for modes that synchronise after every H steps.

A mode of one's own extends `Anchored` (changes travel: write `outer_step_`), `Periodic` (something else does: write
`merge_parameters_`) or `Paced` (a mode whose H is not called `period`).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ddp_agent.config.fields import PositiveInt
from ddp_agent.distributed.comm import mean_
from ddp_agent.distributed.traffic import Collective, RunSizes, times
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.base import SyncStrategy, SyncTraits
from ddp_agent.sync.cadences.base import Cadence, CadenceContext
from ddp_agent.sync.cadences.fixed import Fixed
from ddp_agent.sync.engine.state_policies import (
    OptimizerPolicy,
    averaging_traffic,
    buffer_traffic,
    merge_optimizer_state_,
    optimizer_traffic,
    start_merging_buffers,
)

DRIFT_SAMPLES = 4096  # parameters from which the distance between ranks is estimated


@dataclass(kw_only=True, eq=False)
class Paced(SyncStrategy):
    """A mode that synchronises after every H optimizer steps, and at the end what is left of a period.

    H begins as `_base_period`. The cadence chooses the next H right after a synchronisation, and at no other time.
    """

    _traits = SyncTraits(sends="parameters", has_period=True, survives_lost_rank=True, identical="after_sync")

    cadence: Cadence = field(default_factory=Fixed)
    optimizer_state: OptimizerPolicy = "local"

    _current_period: int = field(init=False, repr=False)  # H(t)
    _synced_step: int = field(init=False, repr=False)  # the step after which the current period began

    @property
    def traits(self) -> SyncTraits:
        return replace(self._traits, merges_optimizer_state=self.optimizer_state != "local")

    def _set_up(self, model: nn.Module) -> nn.Module:
        model = super()._set_up(model)
        self._current_period = self._base_period
        self._begin_period(self._first_step)
        return model

    @property
    def _base_period(self) -> int:
        """The H of the configuration."""
        raise NotImplementedError

    @property
    def _first_step(self) -> int:
        """The number of steps before the first period begins."""
        return 0

    def _due(self, step: int) -> bool:
        return step >= self._synced_step + self._current_period  # later only where a loop does not begin with step 1

    def _period_start(self) -> int:
        return self._synced_step

    def after_step(self, step: int) -> None:
        if self._due(step):
            self._synchronise(step)

    def flush(self, step: int) -> None:
        if step > self._synced_step:
            self._synchronise(step)

    def _synchronise(self, step: int) -> None:
        self._end_period(step)
        self._syncs += 1

    @torch.no_grad()
    def _end_period(self, step: int) -> None:
        drift = self._drift() if self.cadence.traits.measures_drift else None
        self.merge_parameters_()
        merge_optimizer_state_(self._optimizer, self._flat, self.optimizer_state, self._topology.world)
        self._begin_period(step, drift)

    def _begin_period(self, step: int, drift: float | None = None) -> None:
        lr = float(self._optimizer.param_groups[0]["lr"])
        now = CadenceContext(step=step, period=self._current_period, base=self._base_period, lr=lr, drift=drift)
        self._synced_step, self._current_period = step, self._fitting(self.cadence.next_period(now))

    def _fitting(self, period: int) -> int:
        """Return the period nearest to `period` that this mode can have."""
        return period

    def _drift(self) -> float:
        """Return the ranks' relative distance, from some evenly spaced parameters: 32 kB, which are counted."""
        every = math.ceil(self._flat.parameters.numel() / DRIFT_SAMPLES)
        sample = self._flat.parameters[::every].double()
        sums = torch.cat([sample, sample.square().sum().unsqueeze(0)])
        mean_(sums, self._topology.world)
        mean, mean_square = sums[:-1].square().sum().item(), sums[-1].item()
        return math.sqrt(max(0.0, mean_square - mean) / mean) if mean else 0.0

    def _measurements(self) -> dict[str, float]:
        return {"period": self._current_period}

    def state_dict(self) -> dict[str, Any]:
        return {"current_period": self._current_period, "synced_step": self._synced_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._current_period, self._synced_step = state["current_period"], state["synced_step"]

    def traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        syncs = math.ceil(max(0, run.steps - self._first_step) / self._base_period)  # the last one may be the flush
        return times(self._sync_traffic(run, reducer), syncs, **self._pace())

    def _pace(self) -> dict[str, Any]:
        """Return what a longer period does to the collectives of a synchronisation."""
        return {"period": self._base_period, "varies": self.cadence.traits.varies}

    def _sync_traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        """Return the collectives of one synchronisation."""
        samples = math.ceil(run.numbers / math.ceil(run.numbers / DRIFT_SAMPLES))
        drift = [Collective(kind="all_reduce", payload_bytes=8 * (samples + 1), ranks=run.ranks)]
        return [
            *(drift if self.cadence.traits.measures_drift else []),
            *optimizer_traffic(self.optimizer_state, run),
            *self._merge_traffic(run, reducer),
        ]

    def _merge_traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        """Return the collectives of `merge_parameters_`. The default is for parameters averaged with their buffers."""
        return averaging_traffic(self.buffers, reducer, run)

    def merge_parameters_(self) -> None:
        """Synchronise parameters and buffers, in place, on all ranks. This is the mode itself."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class Periodic(Paced):
    """A mode whose H is its `period`."""

    period: PositiveInt  # H, or where H begins

    @property
    def _base_period(self) -> int:
        return self.period


@dataclass(kw_only=True, eq=False)
class Anchored(Periodic):
    """A periodic mode that sends changes since the anchor, the parameters that all ranks last shared."""

    _traits = replace(Periodic._traits, sends="changes", has_anchor=True, acts_alone=True)

    anchor: Tensor = field(init=False, repr=False)
    _changes: Reducer = field(init=False, repr=False)
    _pseudo_gradient: Tensor = field(init=False, repr=False)

    def _set_up(self, model: nn.Module) -> nn.Module:
        model = super()._set_up(model)
        self.anchor = self._flat.parameters.clone()
        self._changes = self._reducer.for_tensor(self._flat.shapes)
        self._pseudo_gradient = torch.empty_like(self.anchor)  # kept: a fresh one costs as much as averaging it
        return model

    def _replicated(self, step: int) -> Tensor | None:
        return self.anchor

    def merge_parameters_(self) -> None:
        torch.sub(self.anchor, self._flat.parameters, out=self._pseudo_gradient)
        finish_buffers = start_merging_buffers(self._flat, self.buffers, self._topology.world)
        self._changes.mean_(self._pseudo_gradient, self._topology.world)
        finish_buffers()
        self.outer_step_(self._pseudo_gradient)
        self._flat.parameters.copy_(self.anchor)

    def _merge_traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        return [*buffer_traffic(self.buffers, run), *reducer.traffic(run.shapes, run.itemsize, run.ranks)]

    def outer_step_(self, pseudo_gradient: Tensor) -> None:
        """Move the anchor by the mean pseudo-gradient D (anchor - parameters). May overwrite D."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"anchor": self.anchor.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.anchor.copy_(state["anchor"])


@dataclass(kw_only=True, eq=False)
class AnchoredWithMomentum(Anchored):
    """A mode whose outer step has a momentum, one number per parameter."""

    _momentum: Tensor = field(init=False, repr=False)

    def _set_up(self, model: nn.Module) -> nn.Module:
        model = super()._set_up(model)
        self._momentum = torch.zeros_like(self.anchor)
        return model

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"momentum": self._momentum.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._momentum.copy_(state["momentum"])
