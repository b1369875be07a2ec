"""Signals, exit codes, and system calls that Python 3.11 has no function for."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class RefusedError(Exception):
    """Reason why no network is made. Its text is the whole message."""


def tool(command: str, pass_fds: Sequence[int] = ()) -> None:
    """Run a command line of words without quotes. Raise CalledProcessError, with its stderr, when it fails."""
    subprocess.run(command.split(), check=True, capture_output=True, text=True, pass_fds=pass_fds)


def on_signals(do: Callable[[int], None]) -> None:
    """Call `do` with the number of each of SIGNALS from now on, pending ones included."""
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: do(number))
    listen_to_signals()


def hold_signals() -> None:
    """Block SIGNALS in this thread: they stay pending until there is a process to hand them on to."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def listen_to_signals() -> None:
    """Unblock SIGNALS in this thread."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    system("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_code(returncode: int) -> int:
    """Return the exit code that a shell shows: 128 + the number of the signal that ended the process."""
    return returncode if returncode >= 0 else 128 - returncode


def system(call: str, *arguments: int) -> None:
    """Call a function of libc. Raise OSError when it does not return 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)
