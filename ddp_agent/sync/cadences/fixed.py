"""A period that never changes."""

from dataclasses import dataclass

from ddp_agent.sync.cadences.base import Cadence, CadenceContext


@dataclass(kw_only=True)
class Fixed(Cadence):
    """Always sync.period."""

    def next_period(self, now: CadenceContext) -> int:
        return now.base
