"""Where the time goes: every moment belongs to exactly one phase, so the parts sum to the whole."""

import time
from collections.abc import Mapping
from typing import Literal, Protocol

Phase = Literal["data", "compute", "eval", "checkpoint"]


class Meter(Protocol):
    """Measures something over the training phases alone; told at every change of phase whether training goes on."""

    def measure(self, training: bool) -> None: ...


class Clock:
    """Seconds spent in each phase, evaluation and checkpoints apart from training. `enter` costs about 0.2 us."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._meter = meter
        self.seconds: dict[str, float] = dict.fromkeys(("data", "compute", "eval", "checkpoint"), 0.0)
        self._phase: Phase | None = None
        self._since = 0.0

    def enter(self, phase: Phase | None) -> None:
        """From now on time belongs to `phase`; None stops the clock."""
        now = time.perf_counter()
        if self._phase is not None:
            self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now
        if self._meter:
            self._meter.measure(phase in ("data", "compute"))

    def read(self, blocked_s: float) -> dict[str, float]:
        """Seconds so far. Communication happens within the compute phase, `blocked_s` of it is exposed.

        train_s = data_s + compute_s + exposed_comm_s; wall_s = train_s + eval_s + checkpoint_s.
        """
        seconds = self.state_dict()
        train_s = seconds["data"] + seconds["compute"]
        return {
            "train_s": train_s,
            "wall_s": train_s + seconds["eval"] + seconds["checkpoint"],
            "data_s": seconds["data"],
            "compute_s": seconds["compute"] - blocked_s,
            "exposed_comm_s": blocked_s,
            "eval_s": seconds["eval"],
            "checkpoint_s": seconds["checkpoint"],
        }

    def state_dict(self) -> dict[str, float]:
        """Seconds of each phase up to now."""
        self.enter(self._phase)
        return dict(self.seconds)

    def load_state_dict(self, seconds: Mapping[str, float]) -> None:
        """Goes on from the seconds of a run that is resumed."""
        self.seconds.update(seconds)
