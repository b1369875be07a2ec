"""Ranks tied to a common centre by springs."""

from dataclasses import dataclass, replace

import torch

from ddp_agent.config.fields import PositiveFloat
from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.sync.engine.state_policies import start_merging_buffers
from ddp_agent.sync.periodic import Anchored


@dataclass(kw_only=True, eq=False)
class EASGD(Anchored):
    """Elastic averaging: every H steps ranks and a common centre pull at each other (Zhang et al. 2015, 1412.6651).

    With d_k = w_k - c: w_k <- w_k - alpha d_k and c <- c + alpha sum_k d_k. The centre c (here `anchor`; every rank
    keeps it) is the model that is evaluated and exported.
    """

    _traits = replace(Anchored._traits, identical="never", consensus="anchor")

    alpha: PositiveFloat = 0.1

    def merge_parameters_(self) -> None:
        world = self._topology.world
        torch.sub(self.anchor, self._flat.parameters, out=self._pseudo_gradient)
        self._flat.parameters.add_(self._pseudo_gradient, alpha=self.alpha)
        finish_buffers = start_merging_buffers(self._flat, self.buffers, world)
        self._changes.mean_(self._pseudo_gradient, world)
        finish_buffers()
        self.anchor.sub_(self._pseudo_gradient, alpha=self.alpha * world.size)

    def _to_consensus_(self) -> None:
        self._flat.parameters.copy_(self.anchor)

    def problems(self, run: RunFacts) -> list[Problem]:
        problems = super().problems(run)
        if run.world_size is None:
            return problems
        ranks, pull = run.world_size, self.alpha * run.world_size
        text = f"easgd: the centre moves by {pull:g} of its mean distance to {ranks} ranks at each synchronisation"
        if pull >= 1:
            text += f", which is stable below 1: lower sync.alpha to less than {1 / ranks:g}"
        return [*problems, Problem("sync", text, fatal=False, harmless=pull < 1)]
