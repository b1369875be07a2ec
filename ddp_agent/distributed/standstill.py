"""Conclusions from the ranks' heartbeats: the rank that stands still, and for how long each activity may.

Times are measured by the rank that looks, since clocks of two machines differ, and only while it runs itself: a process
that was stopped (a debugger, Ctrl-Z, a suspended machine) must not take the others for dead when it wakes.
"""

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from ddp_agent.distributed.progress import Activity, Report

K = TypeVar("K", bound=Hashable)

LONG = 10  # times `timeout_s`: the limit of an activity that takes longer than a step
LONG_S = 60.0  # at least
MAX_TICK_S = 2.0  # a longer pause between two looks was one of this process

WORDS = {
    Activity.COMPUTE: "its main thread has stood still for {s} s in step {step}",
    Activity.DATA: "its loader has given no data for {s} s in step {step}: is the disk, or a loader's process, stuck?",
    Activity.FIRST_STEP: "its first step, {step}, has stood still for {s} s: first batch, compilation or device",
    Activity.EVALUATION: "its evaluation after step {step} has stood still for {s} s",
    Activity.CHECKPOINT: "its checkpoint after step {step} has stood still for {s} s",
    Activity.WRITING: "it has been writing {path} for {s} s, after step {step}: is the disk stuck?",
    Activity.OUTSIDE: "its main thread has stood still for {s} s before or after training, last in step {step}",
}


def long_s(timeout_s: float) -> float:
    """Return the time limit of evaluations, checkpoints, first steps and other long activities."""
    return max(LONG * timeout_s, LONG_S)


class AwakeClock:
    """Seconds in which this process ran. Advances by at most `MAX_TICK_S` per call of `tick`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last = time.monotonic()

    def tick(self) -> float:
        """Advance to this moment and return the seconds."""
        now = time.monotonic()
        self.seconds += min(now - self._last, MAX_TICK_S)
        self._last = now
        return self.seconds


@dataclass
class Unchanged(Generic[K]):
    """The time for which values by rank, or by name, have not changed."""

    _seen: dict[K, tuple[object, float]] = field(default_factory=dict)

    def look(self, values: Mapping[K, object], now: float) -> dict[K, float]:
        """Return the seconds since each value changed."""
        for key, value in values.items():
            if key not in self._seen or self._seen[key][0] != value:
                self._seen[key] = (value, now)
        return {key: now - self._seen[key][1] for key in values}


class Stuck(NamedTuple):
    """A rank that stands still, and the sentence about it. `over`: for longer than it may. `place`: where it stands."""

    rank: int
    step: int
    text: str
    over: bool
    place: str


def stuck_rank(
    reports: Mapping[int, Report], stood_s: Mapping[int, float], limit_s: float, patience_s: float
) -> Stuck | None:
    """Return the rank that others wait for, or have left behind, and that has stood still for longer than `limit_s`.

    Only ranks with a time in `stood_s` are judged. `patience_s`: the limit of activities that take longer than a step.
    A rank inside a collective waits itself and is never the one. With several, a rank that is over its limit comes
    first, then the rank that is furthest behind, then the one that has stood longest.
    """
    candidates = []
    for rank, stood in stood_s.items():
        report = reports[rank]
        if stood <= limit_s or report.waiting or report.activity is Activity.LEFT:
            continue
        if any(other.is_beyond(report) for number, other in reports.items() if number != rank):
            within = report.activity.patient and stood <= patience_s
            candidates.append((within, report.step, report.launched, -stood, rank))
    if not candidates:
        return None
    within, step, _, negative_s, rank = min(candidates)
    report = reports[rank]
    text = WORDS[report.activity].format(s=f"{-negative_s:.0f}", step=step, path=report.path)
    return Stuck(rank, step, text, over=not within, place=f"{rank} {report}")
