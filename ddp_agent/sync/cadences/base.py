"""The interface of every cadence, which changes the period H while a periodic mode trains.

Right after a synchronisation the mode asks its cadence for the next period. The cadence gets only values that are equal
on all ranks. It holds no state: the mode owns and saves the period.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from ddp_agent.config.fields import PositiveInt, check_fields
from ddp_agent.config.problems import Problem, RunFacts


@dataclass(frozen=True, kw_only=True)
class CadenceContext:
    """Right after a synchronisation, or before the first step. The same on every rank."""

    step: int  # optimizer steps done
    period: int  # H until now
    base: int  # the mode's own `period`
    lr: float  # of the first parameter group
    drift: float | None = None  # relative consensus distance just before, where it was measured


@dataclass(frozen=True, kw_only=True)
class CadenceTraits:
    """Facts about a cadence that other parts of the package rely on.

    `varies`: the period changes, so the mode must have one. `measures_drift`: `next_period` needs
    `CadenceContext.drift`, which costs a collective of 32 kB per period.
    """

    varies: bool = True
    measures_drift: bool = False


@dataclass(kw_only=True)
class Cadence(ABC):
    """A rule for the period. `total_steps` is the length of training, None where nobody knows it."""

    traits: ClassVar[CadenceTraits] = CadenceTraits()

    total_steps: PositiveInt | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def problems(self, run: RunFacts) -> list[Problem]:
        """Return what does not fit between this cadence and a run."""
        sync = run.pieces.get("sync")
        if not self.traits.varies or sync is None or sync.traits.has_period:
            return []
        text = f"found {type(self).__name__}, but {type(sync).__name__} has no period: use cadence=fixed"
        return [Problem("cadence", text)]

    @abstractmethod
    def next_period(self, now: CadenceContext) -> int:
        """H, at least 1."""
