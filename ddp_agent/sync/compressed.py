"""Gradient averaging through a reducer that may be lossy, with a bitwise resume."""

from dataclasses import dataclass

from torch import nn

from ddp_agent.sync.engine.averaged_gradients import AveragedGradients
from ddp_agent.sync.engine.gradients import FlatGradients, MeanGradients


@dataclass(kw_only=True, eq=False)
class Compressed(AveragedGradients):
    """Gradients averaged every step, after backward, by any reducer, with error feedback where it is lossy.

    What a reducer dropped from a parameter comes back to that parameter, after a resume too. DDP's buckets are
    regrouped, so `allreduce` could not promise it.
    """

    def _averaging(self, model: nn.Module) -> MeanGradients:
        return FlatGradients(model, self._flat, self._reducer, self._topology.world)
