"""Periodic parameter averaging."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ddp_agent.sync.base import Periodic
from ddp_agent.sync.policies import merge_buffers_


@dataclass(kw_only=True, eq=False)
class LocalSGD(Periodic):
    """Parameters averaged every H steps (Stich 2019, arXiv:1805.09767)."""

    sends: ClassVar[Literal["parameters"]] = "parameters"

    def merge_parameters_(self) -> None:
        together = self.buffers == "average"  # buffers lie behind the parameters: one collective serves both
        finish = self.reducer.start(self.flat.everything if together else self.flat.parameters, self.topology.world)
        merge_buffers_(self.flat, self.buffers, self.topology.world, homed=not together)  # meanwhile
        finish()
