"""Periodic parameter averaging."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ddp_agent.sync.engine.state_policies import average_
from ddp_agent.sync.periodic import Periodic


@dataclass(kw_only=True, eq=False)
class LocalSGD(Periodic):
    """Parameters averaged every H steps (Stich 2019, arXiv:1805.09767)."""

    sends: ClassVar[Literal["parameters"]] = "parameters"

    def common(self, step: int) -> Tensor | None:
        return self.flat.parameters if self.synced_step == step else None

    def merge_parameters_(self) -> None:
        average_(self.flat, self.buffers, self.reducer, self.topology.world)
