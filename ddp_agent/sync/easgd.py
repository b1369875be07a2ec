"""Ranks tied to a common centre by springs."""

from dataclasses import dataclass

import torch

from ddp_agent.config.fields import PositiveFloat
from ddp_agent.sync.engine.state_policies import start_merging_buffers
from ddp_agent.sync.periodic import Anchored


@dataclass(kw_only=True, eq=False)
class EASGD(Anchored):
    """Elastic averaging: every H steps ranks and a common centre pull at each other (Zhang et al. 2015, 1412.6651).

    With d_k = w_k - c: w_k <- w_k - alpha d_k and c <- c + alpha sum_k d_k. The centre c (here `anchor`; every rank
    keeps it) is the model that is evaluated and exported.
    """

    alpha: PositiveFloat = 0.1

    def merge_parameters_(self) -> None:
        world = self.topology.world
        torch.sub(self.anchor, self.flat.parameters, out=self._pseudo_gradient)
        self.flat.parameters.add_(self._pseudo_gradient, alpha=self.alpha)
        finish_buffers = start_merging_buffers(self.flat, self.buffers, world)
        self._changes.mean_(self._pseudo_gradient, world)
        finish_buffers()
        self.anchor.sub_(self._pseudo_gradient, alpha=self.alpha * world.size)

    def to_consensus_(self) -> None:
        self.flat.parameters.copy_(self.anchor)

    def stability(self, world_size: int) -> tuple[str, bool]:
        pull = self.alpha * world_size
        text = f"easgd: the centre moves by {pull:g} of its mean distance to {world_size} ranks at each synchronisation"
        if pull < 1:
            return text, False
        return f"{text}, which is stable below 1: lower sync.alpha to less than {1 / world_size:g}", True
