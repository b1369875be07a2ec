"""The beginning and the end of a run's process."""

import atexit
import ctypes
import os
import signal
import sys
import threading
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies: a SIGKILLed torchrun cannot take its ranks down.

    Call it before slow imports. Does nothing but on Linux.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the kernel was asked
        os._exit(1)


def leave(code: int) -> NoReturn:
    """End a process that used collectives. Does all that `sys.exit` does, except finalising the interpreter.

    A thread of gloo releases the last collective's tensor at some later moment. If the interpreter is being finalised
    then, torch 2.15 aborts ("terminate called without an active exception", exit code 134), and a run that succeeded
    looks failed.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # private: no public function runs the registered hooks without finalising
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
