"""No synchronisation."""

from dataclasses import dataclass

from ddp_agent.sync.base import SyncStrategy, SyncTraits


@dataclass(kw_only=True, eq=False)
class Independent(SyncStrategy):
    """Never: ranks train alone, and their models are averaged to be evaluated. The no-communication reference."""

    _traits = SyncTraits(survives_lost_rank=True)

    def _exchanges(self, step: int) -> bool:
        return False
