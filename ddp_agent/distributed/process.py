"""A run's process: the variables by which torchrun and the launcher of replicas tell it who it is, and its end.

Needs no torch.
"""

import atexit
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

_REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TORCHRUN = (*_REQUIRED, "LOCAL_WORLD_SIZE")
_TORCHRUN_PREFIXES = ("GROUP_", "ROLE_", "TORCHELASTIC_")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

REPLICA = ("DDP_AGENT_REPLICA", "DDP_AGENT_REPLICAS", "DDP_AGENT_COORDINATOR")
EARLIER_ATTEMPTS = "DDP_AGENT_EARLIER_ATTEMPTS"  # of this run, counted by a sweep or a cluster that restarts it


@dataclass(frozen=True, kw_only=True)
class TorchrunEnvironment:
    """One process's number among the ranks. `local_rank` chooses the GPU and nothing else."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node_rank: int = 0

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "TorchrunEnvironment | None":
        """Return None unless torchrun started the process (or a scheduler that sets the same variables)."""
        if any(name not in environment for name in _REQUIRED):
            return None
        rank, local_rank, world_size = (int(environment[n]) for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        local_world_size = int(environment.get("LOCAL_WORLD_SIZE", world_size))
        return cls(
            rank=rank,
            local_rank=local_rank,
            world_size=world_size,
            local_world_size=local_world_size,
            node_rank=int(environment.get("GROUP_RANK", rank // local_world_size)),
        )

    @property
    def single_node(self) -> bool:
        """True when all ranks are on one node."""
        return self.local_world_size == self.world_size


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One run out of `count` that train together, each in a torchrun of its own (`launch/elastic.sh`)."""

    number: int
    count: int
    coordinator: str  # HOST:PORT

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "Replica | None":
        """Return None for an ordinary run."""
        if any(name not in environment for name in REPLICA):
            return None
        number, count, coordinator = (environment[name] for name in REPLICA)
        return cls(number=int(number), count=int(count), coordinator=coordinator)


def without_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a nested torchrun: with torchrun's variables it would join its parent's store."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _TORCHRUN and not name.startswith(_TORCHRUN_PREFIXES)
    }


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
