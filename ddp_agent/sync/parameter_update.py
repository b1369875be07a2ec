"""Parameter updates accumulated and applied to the model that all ranks last shared."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ddp_agent.config.fields import NonNegativeFloat
from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.sync.base import SyncTraits
from ddp_agent.sync.periodic import Anchored


@dataclass(kw_only=True, eq=False)
class ParameterUpdate(Anchored):
    """The ranks' changes over H steps, summed or averaged, applied to the shared model: the article's second way."""

    combine: Literal["sum", "mean"] = "sum"
    outer_lr: NonNegativeFloat = 1.0  # eta

    @property
    def traits(self) -> SyncTraits:
        return replace(super().traits, acts_alone=self._mean_step(1) != 1)

    def _mean_step(self, world_size: int) -> float:
        """Return the step along the mean change: summing K changes with eta is averaging them with eta K."""
        return self.outer_lr * (world_size if self.combine == "sum" else 1)

    def problems(self, run: RunFacts) -> list[Problem]:
        """Say what the step amounts to, and warn when it can diverge.

        On a quadratic of curvature l one round multiplies the error by 1 - mean step * c with c = 1 - (1 - lr l)^H,
        which lies in (0, 1] for a stable inner optimizer: with a mean step below 2 no curvature can diverge.
        """
        problems = super().problems(run)
        if run.world_size is None:
            return problems
        step = self._mean_step(run.world_size)
        text = f"parameter_update: effective step {step:g} along the mean change of {run.world_size} ranks"
        if step >= 2:
            text += (
                f"; this diverges wherever the local steps of a period remove more than {2 / step:.0%} of the error "
                f"(stable while step * c < 2, c = 1 - (1 - lr * curvature)^period); if the loss grows, lower "
                f"sync.outer_lr (1/{run.world_size} averages), sync.period or optimizer.lr"
            )
        return [*problems, Problem("sync", text, fatal=False, harmless=step < 2)]

    def outer_step_(self, pseudo_gradient: Tensor) -> None:
        self.anchor.sub_(pseudo_gradient, alpha=self._mean_step(self._topology.world.size))
