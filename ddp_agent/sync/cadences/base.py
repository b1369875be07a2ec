"""How the period H changes while a periodic mode trains.

A cadence is asked right after a synchronisation, is told only what all ranks know alike, and answers with the next
period. It holds no state: what changes is the mode's, which saves it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from ddp_agent.config.fields import check_fields


@dataclass(frozen=True, kw_only=True)
class CadenceContext:
    """Right after a synchronisation, or before the first step. The same on every rank."""

    step: int  # optimizer steps done
    period: int  # H until now
    base: int  # the mode's own `period`
    lr: float  # of the first parameter group
    drift: float | None = None  # relative consensus distance just before, where it was measured


@dataclass(kw_only=True)
class Cadence(ABC):
    """`total_steps` is how long training is, where it is known: a run sets it."""

    total_steps: int | None = field(default=None, init=False, repr=False)

    measures_drift: ClassVar[bool] = (
        False  # whether it needs `CadenceContext.drift`, which costs a small collective a period
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def next_period(self, now: CadenceContext) -> int:
        """H, at least 1."""
