"""The progress of a rank's main thread, which its heartbeats carry to the other ranks.

A rank whose main thread sleeps still sends heartbeats: another thread sends them. So they say where the main thread is.
A note costs about 0.1 us and takes no lock: the main thread writes it, the failure detector reads it twice a second.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Activity(StrEnum):
    """An activity of a main thread. Its value travels in heartbeats."""

    COMPUTE = "compute"
    DATA = "data"  # it waits for its loader
    FIRST_STEP = "first step"  # the first batch, compilation, the allocations of a GPU
    EVALUATION = "eval"
    CHECKPOINT = "checkpoint"
    WRITING = "writing"  # records, an export, a checkpoint's file: `Report.path` says where
    OUTSIDE = "outside"  # before the first step and after the last one
    LEFT = "left"  # this rank's run is over

    @property
    def patient(self) -> bool:
        """True for an activity that may take much longer than a step: it has a time limit of its own."""
        return self not in (Activity.COMPUTE, Activity.DATA)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The place of a main thread at one moment. Two equal reports mean that it has not moved."""

    step: int = 0  # the last step that it has begun
    launched: int = 0  # collectives so far
    moves: int = 0  # changes of activity, ends of waits and other signs of work so far
    activity: Activity = Activity.OUTSIDE
    waiting: bool = False  # for other ranks, inside a collective
    path: str = ""

    def is_beyond(self, other: Self) -> bool:
        """Return whether this rank has got further than the other, or waits at a place that the other has to reach."""
        if self.activity is Activity.LEFT:
            return False
        if self.waiting:
            return self.step >= other.step
        return (self.step, self.launched) > (other.step, other.launched)


PHASES = {
    "compute": Activity.COMPUTE,
    "data": Activity.DATA,
    "eval": Activity.EVALUATION,
    "checkpoint": Activity.CHECKPOINT,
}


class Progress:
    """Notes of one thread about itself. A `Meter` of the run's clock, which passes on its phases."""

    def __init__(self) -> None:
        self._step = self._launched = self._moves = self._waits = 0
        self._first: int | None = None
        self._phase: str | None = None
        self._path = ""
        self._followed: Progress | None = None
        self._left = False

    def measure(self, phase: str | None) -> None:
        """Note the phase of the clock that begins. None: the clock stands, before and after training."""
        self._phase = phase
        self._moves += 1

    def begin(self, step: int) -> None:
        """Note that a step begins."""
        self._step = step
        self._moves += 1
        if self._first is None:
            self._first = step

    def launch(self) -> None:
        """Note that a collective begins."""
        self._launched += 1

    def wait(self) -> None:
        """Note that the thread begins to wait for other ranks. A wait inside another one is part of it."""
        self._waits += 1

    def resume(self) -> None:
        """Note the end of a wait."""
        self._waits -= 1
        self._moves += 1

    def move(self) -> None:
        """Note that a long piece of work goes on."""
        self._moves += 1

    def leave(self) -> None:
        """Note that the run is over on this rank: nobody needs to wait for it any more."""
        self._left = True

    @contextmanager
    def writing(self, path: object) -> Iterator[None]:
        """Note that the thread writes below `path` inside this context. The disk is named if it does not come back."""
        before, self._path = self._path, str(path)
        self._moves += 1
        try:
            yield
        finally:
            self._path = before
            self._moves += 1

    @contextmanager
    def following(self, other: "Progress") -> Iterator[None]:
        """Report the place of another thread of this process inside this context: this one waits for it."""
        self._followed = other
        try:
            yield
        finally:
            self._followed = None
            self._moves += 1

    def report(self) -> Report:
        """Return where the thread is."""
        followed = self._followed
        launched, moves, waits, path = self._launched, self._moves, self._waits, self._path
        if followed is not None:
            launched += followed._launched
            moves, waits, path = moves + followed._moves, followed._waits, followed._path
        return Report(
            step=self._step,
            launched=launched,
            moves=moves,
            activity=self._activity(path),
            waiting=waits > 0,
            path=path,
        )

    def _activity(self, path: str) -> Activity:
        if self._left:
            return Activity.LEFT
        if path:
            return Activity.WRITING
        activity = Activity.OUTSIDE if self._phase is None else PHASES[self._phase]
        return Activity.FIRST_STEP if self._step == self._first and not activity.patient else activity
