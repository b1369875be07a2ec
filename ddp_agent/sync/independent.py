"""No synchronisation."""

from dataclasses import dataclass

from ddp_agent.sync.base import SyncStrategy


@dataclass(kw_only=True, eq=False)
class Independent(SyncStrategy):
    """Never: ranks train alone, and their models are averaged to be evaluated. The no-communication reference."""

    def loss_refusal(self) -> str | None:
        return None

    def meets(self, step: int) -> bool:
        return False
