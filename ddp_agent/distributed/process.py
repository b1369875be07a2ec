"""How a process of a run begins and ends."""

import atexit
import ctypes
import os
import signal
import sys
import threading
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """A SIGKILLed torchrun cannot take its ranks down: have the kernel do it. Call it before slow imports."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)


def leave(code: int) -> NoReturn:
    """Ends a process that used collectives: all that `sys.exit` does, but for taking the interpreter apart.

    A thread of gloo lets go of the last collective's tensor at a moment of its own. In an interpreter that is being
    taken apart torch 2.15 then aborts ("terminate called without an active exception", exit code 134) and a run that
    was whole looks failed.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
