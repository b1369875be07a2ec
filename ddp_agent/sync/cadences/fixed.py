"""A period that never changes."""

from dataclasses import dataclass

from ddp_agent.sync.cadences.base import Cadence, CadenceContext, CadenceTraits


@dataclass(kw_only=True)
class Fixed(Cadence):
    """Always sync.period."""

    traits = CadenceTraits(varies=False)

    def next_period(self, now: CadenceContext) -> int:
        return now.base
