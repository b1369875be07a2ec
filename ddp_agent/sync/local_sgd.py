"""Periodic parameter averaging."""

from dataclasses import dataclass

from torch import Tensor

from ddp_agent.sync.engine.state_policies import average_
from ddp_agent.sync.periodic import Periodic


@dataclass(kw_only=True, eq=False)
class LocalSGD(Periodic):
    """Parameters averaged every H steps (Stich 2019, arXiv:1805.09767)."""

    def _replicated(self, step: int) -> Tensor | None:
        return self._flat.parameters if self._synced_step == step else None

    def merge_parameters_(self) -> None:
        average_(self._flat, self.buffers, self._reducer, self._topology.world)
