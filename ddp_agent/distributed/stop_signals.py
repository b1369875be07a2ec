"""Signals that ask a run to stop, read from a pipe: handlers cannot run while the main thread is in a collective."""

import os
import re
import select
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # the last two: schedulers'

_GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
_GRACE_S = 30.0  # torchrun's default


def grace_s(environment: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that torchrun waits for ranks which it asked to stop, before it kills them."""
    try:
        seconds = float(environment.get(_GRACE, _GRACE_S))
    except ValueError:
        return _GRACE_S
    return seconds if 0 < seconds < float("inf") else _GRACE_S


def parse_request(text: str) -> str:
    """Return a request to stop, such as "SIGTERM on rank 1". Raise ValueError for anything else."""
    if not re.fullmatch(r"SIG[A-Z0-9]{2,10} on rank \d{1,7}", text):
        raise ValueError(f"found {text[:50]!r}, expected a signal and a rank")
    return text


class SignalListener:
    """The signals of this process from `start` to `close`. The interpreter writes each one's number into a pipe.

    The handler does nothing. `received` is the first signal of `SIGNALS` that came, None before.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}
        self._reader = self._writer = -1

    def start(self) -> None:
        """Replace the handlers, in the main thread only. Signals that are ignored stay ignored: `nohup` needs it."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        if threading.current_thread() is threading.main_thread():
            numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, _ignore) for number in numbers}
            signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def wait(self, timeout_s: float) -> bool:
        """Return after `timeout_s`, after a signal, or after `wake`. Return True when a signal of `SIGNALS` came."""
        select.select([self._reader], [], [], timeout_s)
        numbers: list[int] = []
        with suppress(BlockingIOError):
            numbers = [number for number in os.read(self._reader, 4096) if number in SIGNALS]
        if numbers and self.received is None:
            self.received = numbers[0]
        return bool(numbers)

    def wake(self) -> None:
        """Let `wait` return."""
        with suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def close(self, *, restore: bool) -> None:
        """Stop listening. Without `restore` the signals do nothing until the process ends."""
        if self._handlers:
            signal.set_wakeup_fd(-1)
            for number, handler in self._handlers.items() if restore else ():
                signal.signal(number, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: a signal needs a handler to be written into the pipe."""


def _restore_in_child() -> None:
    """Let a forked child be terminated: it would write its signals into its parent's pipe."""
    if signal.getsignal(signal.SIGTERM) is _ignore:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_restore_in_child)
