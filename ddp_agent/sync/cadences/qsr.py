"""A period that follows the learning rate."""

import math
from dataclasses import dataclass

from ddp_agent.config.fields import NonNegativeInt, PositiveFloat
from ddp_agent.sync.cadences.base import Cadence, CadenceContext


@dataclass(kw_only=True)
class QSR(Cadence):
    """The quadratic synchronisation rule, H = max(sync.period, (alpha / lr)^2) (Gu et al. 2024, arXiv:2310.14423)."""

    alpha: PositiveFloat
    warmup_steps: NonNegativeInt = 0  # while the learning rate grows, H stays: it would begin with its largest

    def next_period(self, now: CadenceContext) -> int:
        if now.step < self.warmup_steps:
            return now.base
        left = math.inf if self.total_steps is None else max(1, self.total_steps - now.step)
        grown = (self.alpha / now.lr) ** 2 if now.lr > 0 else math.inf
        wanted = max(now.base, min(grown, left, 2**31))  # never past the last step
        return math.floor(wanted)
