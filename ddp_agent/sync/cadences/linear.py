"""A period that changes in a straight line."""

from dataclasses import dataclass

from ddp_agent.config.fields import PositiveInt
from ddp_agent.sync.cadences.base import Cadence, CadenceContext


@dataclass(kw_only=True)
class Linear(Cadence):
    """From sync.period at the start to `final_period` after `steps` steps, in a straight line."""

    final_period: PositiveInt
    steps: PositiveInt | None = None  # None: the whole run

    def next_period(self, now: CadenceContext) -> int:
        steps = self.steps or self.total_steps
        if steps is None:
            raise ValueError("Linear: steps: found None where nobody says how long training is, expected a number")
        return round(now.base + (self.final_period - now.base) * min(1.0, now.step / steps))
