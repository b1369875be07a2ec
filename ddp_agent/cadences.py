"""How the period H changes while a periodic mode trains.

A cadence is asked right after a synchronisation, is told only what all ranks know alike, and answers with the next
period. It holds no state: what changes is the mode's, which saves it.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from ddp_agent.fields import NonNegativeInt, PositiveFloat, PositiveInt, check_fields
from ddp_agent.moment import Moment


@dataclass(kw_only=True)
class Cadence(ABC):
    """`total_steps` is how long training is, where it is known: a run sets it."""

    total_steps: int | None = field(default=None, init=False, repr=False)

    measures_drift: ClassVar[bool] = False  # whether it needs `Moment.drift`, which costs a small collective a period

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def next_period(self, now: Moment) -> int:
        """H, at least 1."""


@dataclass(kw_only=True)
class Fixed(Cadence):
    """Always sync.period."""

    def next_period(self, now: Moment) -> int:
        return now.base


@dataclass(kw_only=True)
class Linear(Cadence):
    """From sync.period at the start to `final_period` after `steps` steps, in a straight line."""

    final_period: PositiveInt
    steps: PositiveInt | None = None  # None: the whole run

    def next_period(self, now: Moment) -> int:
        steps = self.steps or self.total_steps
        if steps is None:
            raise ValueError("Linear: steps: found None where nobody says how long training is, expected a number")
        return round(now.base + (self.final_period - now.base) * min(1.0, now.step / steps))


@dataclass(kw_only=True)
class QSR(Cadence):
    """The quadratic synchronisation rule, H = max(sync.period, (alpha / lr)^2) (Gu et al. 2024, arXiv:2310.14423)."""

    alpha: PositiveFloat
    warmup_steps: NonNegativeInt = 0  # while the learning rate grows, H stays: it would begin with its largest

    def next_period(self, now: Moment) -> int:
        if now.step < self.warmup_steps:
            return now.base
        left = math.inf if self.total_steps is None else max(1, self.total_steps - now.step)
        grown = (self.alpha / now.lr) ** 2 if now.lr > 0 else math.inf
        wanted = max(now.base, min(grown, left, 2**31))  # never past the last step
        return math.floor(wanted)


@dataclass(kw_only=True)
class Drift(Cadence):
    """Grows or shrinks H, by at most a factor of two, to hold the ranks' relative distance at `target`."""

    target: PositiveFloat  # sqrt(mean_k ||w_k - mean w||^2) / ||mean w||, just before a synchronisation
    max_period: PositiveInt = 1024

    measures_drift: ClassVar[bool] = True

    def next_period(self, now: Moment) -> int:
        if now.drift is None or math.isnan(now.drift):
            return now.period
        factor = 2.0 if now.drift == 0 else min(2.0, max(0.5, self.target / now.drift))
        return max(1, min(self.max_period, round(now.period * factor)))
