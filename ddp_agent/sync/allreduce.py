"""Gradient all-reduce by DistributedDataParallel."""

from dataclasses import dataclass, replace

from torch import nn

from ddp_agent.sync.engine.averaged_gradients import AveragedGradients
from ddp_agent.sync.engine.gradients import MeanGradients, overlapping


@dataclass(kw_only=True, eq=False)
class AllReduce(AveragedGradients):
    """Gradients averaged every step, overlapping backward: DistributedDataParallel, the baseline."""

    _traits = replace(AveragedGradients._traits, averages_in_backward=True)

    def _averaging(self, model: nn.Module) -> MeanGradients:
        return overlapping(model, self._flat, self._reducer, self._topology.world)
