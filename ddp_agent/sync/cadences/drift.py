"""A period that follows the distance between ranks."""

import math
from dataclasses import dataclass

from ddp_agent.config.fields import PositiveFloat, PositiveInt
from ddp_agent.sync.cadences.base import Cadence, CadenceContext, CadenceTraits


@dataclass(kw_only=True)
class Drift(Cadence):
    """Grows or shrinks H, by at most a factor of two, to hold the ranks' relative distance at `target`."""

    target: PositiveFloat  # sqrt(mean_k ||w_k - mean w||^2) / ||mean w||, just before a synchronisation
    max_period: PositiveInt = 1024

    traits = CadenceTraits(measures_drift=True)

    def next_period(self, now: CadenceContext) -> int:
        if now.drift is None or math.isnan(now.drift):
            return now.period
        factor = 2.0 if now.drift == 0 else min(2.0, max(0.5, self.target / now.drift))
        return max(1, min(self.max_period, round(now.period * factor)))
