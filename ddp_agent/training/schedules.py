"""Learning-rate schedules: a factor of the optimizer's lr, computed from the step alone.

They are functions of the step and not torch's schedulers: a resume has no state to get wrong, and setting a number
costs 1 us per step where a scheduler costs 15.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from ddp_agent.config.fields import Fraction, NonNegativeInt, PositiveInt, check_fields
from ddp_agent.config.problems import Problem, RunFacts


@dataclass(kw_only=True)
class Schedule(ABC):
    """A learning-rate schedule with a linear warm-up."""

    warmup_steps: NonNegativeInt

    def __post_init__(self) -> None:
        check_fields(self)

    def problems(self, run: RunFacts) -> list[Problem]:
        """Return what does not fit between this schedule and a run."""
        if run.total_steps is None or self.warmup_steps <= run.total_steps:
            return []
        text = f"found {self.warmup_steps}, expected at most the run's {run.total_steps} steps"
        return [Problem("schedule.warmup_steps", text)]

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor of the 1-based `step`. Warm-up ends at 1 in step `warmup_steps`.

        Without warm-up the first step has 1, so one step of warm-up is the same as none.
        """
        full = max(1, self.warmup_steps)
        if step < full:
            return step / full
        return self.after_warmup(step - full, max(1, total_steps - full))

    @abstractmethod
    def after_warmup(self, step: int, total_steps: int) -> float:
        """Return the factor `step` steps after it reached 1, for 0, 1, …, `total_steps`."""


@dataclass(kw_only=True)
class Constant(Schedule):
    """A constant learning rate: the optimizer's lr."""

    def after_warmup(self, step: int, total_steps: int) -> float:
        return 1.0


@dataclass(kw_only=True)
class Cosine(Schedule):
    """A half cosine, down to `final` times the lr at the last step (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    final: Fraction

    def after_warmup(self, step: int, total_steps: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, step / total_steps))) / 2


@dataclass(kw_only=True)
class Step(Schedule):
    """A factor that is multiplied by `decay` after every `every_steps` steps."""

    every_steps: PositiveInt
    decay: Fraction

    def after_warmup(self, step: int, total_steps: int) -> float:
        return float(self.decay ** (step // self.every_steps))
