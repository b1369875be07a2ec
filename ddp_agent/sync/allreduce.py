"""Gradient all-reduce by DistributedDataParallel."""

from dataclasses import dataclass, replace

from torch import nn

from ddp_agent.distributed.traffic import Collective, RunSizes
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.engine.averaged_gradients import AveragedGradients
from ddp_agent.sync.engine.gradients import MeanGradients, overlapping, overlapping_traffic


@dataclass(kw_only=True, eq=False)
class AllReduce(AveragedGradients):
    """Gradients averaged every step, overlapping backward: DistributedDataParallel, the baseline."""

    _traits = replace(AveragedGradients._traits, averages_in_backward=True)

    def _averaging(self, model: nn.Module) -> MeanGradients:
        return overlapping(model, self._flat, self._reducer, self._topology.world)

    def _gradient_traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        return overlapping_traffic(run, reducer)
