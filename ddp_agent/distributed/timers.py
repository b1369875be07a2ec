"""Clocks for time that a rank spends in communication: the host's, or the GPU's compute stream's."""

import time
from typing import Any

import torch


class Timer:
    """The host's clock, whose stamps are seconds. A subclass may take stamps before their moment has come."""

    def now(self) -> Any:
        """Return a stamp of this moment."""
        return time.perf_counter()

    def between_s(self, began: Any, ended: Any) -> float:
        """Return the seconds between two stamps if they are known, else 0 and let `settle_s` return them."""
        return float(ended - began)

    def settle_s(self) -> float:
        """Return the seconds that `between_s` did not know, since the last call."""
        return 0.0

    def host_s(self, stamp: Any) -> float:
        """Return a stamp's moment by this process's `time.perf_counter`."""
        return float(stamp)


class CudaTimer(Timer):
    """The clock of the compute stream. Its stamps are events that pass when all work queued before them is done.

    The host does not wait for the GPU, except in `settle_s` and `host_s`: call them at logging intervals.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._zero: tuple[float, torch.cuda.Event] | None = None

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_s(self, began: torch.cuda.Event, ended: torch.cuda.Event) -> float:
        self._unread.append((began, ended))
        return 0.0

    def settle_s(self) -> float:
        seconds = 0.0
        for began, ended in self._unread:
            ended.synchronize()
            seconds += began.elapsed_time(ended) / 1e3
        self._unread.clear()
        return seconds

    def host_s(self, stamp: torch.cuda.Event) -> float:
        if self._zero is None:
            zero = self.now()
            zero.synchronize()
            self._zero = (time.perf_counter(), zero)
        stamp.synchronize()
        zero_s, zero = self._zero
        return zero_s + float(zero.elapsed_time(stamp)) / 1e3
