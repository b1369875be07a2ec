"""Signals that stop a sweep: each becomes an exception in the main thread, but not while a job is being started.

An exception inside `subprocess.Popen` would leave a job that nobody knows of.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_held = 0  # depth of `held`
_received: list[int] = []  # signals that came while they were held


@contextmanager
def raised() -> Iterator[None]:
    """Let signals raise KeyboardInterrupt or SystemExit. One that is ignored stays ignored: `nohup` needs it."""
    numbers = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[list[int]]:
    """Keep signals back until the end of the body, and raise the first one then. Yield those that came."""
    global _held
    _held += 1
    came: list[int] = []
    try:
        yield _received
    finally:
        _held -= 1
        if not _held:
            came = list(_received)
            _received.clear()
    if came:
        _raise(came[0])


def _handle(number: int, frame: FrameType | None) -> None:
    if _held:
        _received.append(number)
    else:
        _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def name_of(error: BaseException) -> str:
    """Return the name of the signal that an exception stands for, such as SIGTERM; empty for any other exception."""
    if isinstance(error, KeyboardInterrupt):
        return "SIGINT"
    code = error.code if isinstance(error, SystemExit) else None
    numbers = {128 + number: number.name for number in _SIGNALS}
    return numbers.get(code, "") if isinstance(code, int) else ""
