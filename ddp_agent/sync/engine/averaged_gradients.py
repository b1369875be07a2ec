"""Sync modes that average gradients in every step."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ddp_agent.distributed.traffic import Collective, RunSizes, times
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.base import SyncStrategy, SyncTraits
from ddp_agent.sync.engine.gradients import MeanGradients
from ddp_agent.sync.engine.state_policies import buffer_traffic, merge_buffers_


@dataclass(kw_only=True, eq=False)
class AveragedGradients(SyncStrategy):
    """A mode in which all ranks take the same step, along the mean gradient. Buffers are merged at the end only."""

    _traits = SyncTraits(sends="gradients", identical="always")

    _gradients: MeanGradients = field(init=False, repr=False)

    def _set_up(self, model: nn.Module) -> nn.Module:
        model = super()._set_up(model)
        self._gradients = self._averaging(model)
        return self._gradients.module

    def traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        return [*self._gradient_traffic(run, reducer), *buffer_traffic(self.buffers, run)]

    def _gradient_traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        """Return the collectives of `run.steps` steps. The default is for gradients averaged in one piece."""
        return times(reducer.traffic(run.shapes, run.itemsize, run.ranks), run.steps)

    def _averaging(self, model: nn.Module) -> MeanGradients:
        """Return the means of averaging the gradients of `model`, which is set up."""
        raise NotImplementedError

    def backward_context(self, step: int, last_micro_batch: bool) -> AbstractContextManager[None]:
        return self._gradients.context(last_micro_batch)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        self._gradients.finish()
        self._syncs += 1

    @torch.no_grad()
    def flush(self, step: int) -> None:
        merge_buffers_(self._flat, self.buffers, self._topology.world)

    def _replicated(self, step: int) -> Tensor:
        return self._flat.parameters

    def _to_consensus_(self) -> None:
        """Do nothing: the parameters are the same on every rank."""
