"""What a cadence is told."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Right after a synchronisation, or before the first step. The same on every rank."""

    step: int  # optimizer steps done
    period: int  # H until now
    base: int  # the mode's own `period`
    lr: float  # of the first parameter group
    drift: float | None = None  # relative consensus distance just before, where it was measured
