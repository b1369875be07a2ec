"""A run's process: the variables by which torchrun and the launcher of replicas tell it who it is, and its end.

Needs no torch.
"""

import atexit
import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from ddp_agent.distributed.launchers import missing, refusal, several_tasks
from ddp_agent.distributed.variables import malformed, whole
from ddp_agent.errors import ConfigError

_REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TORCHRUN = (*_REQUIRED, "LOCAL_WORLD_SIZE")
# The values of a lone process, for the variables that tell of others. MASTER_ADDR and MASTER_PORT tell of none.
_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
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
        """Return None unless torchrun started the process (or a scheduler that sets the same variables).

        Raise ConfigError, with the remedy, where this process would train alone beside others: a scheduler or MPI
        started several, or a part of torchrun's variables is set. Raise it for malformed variables, too.
        """
        if wrong := malformed(environment):
            raise ConfigError(wrong)
        read = cls._read(environment)
        if _trains_alone(environment, read) and (task := several_tasks(environment)):
            raise ConfigError(refusal(task))
        return read

    @classmethod
    def _read(cls, environment: Mapping[str, str]) -> "TorchrunEnvironment | None":
        present = [name for name in _TORCHRUN if environment.get(name)]
        ranks = {name: environment[name] for name in _ALONE if name in present}
        if absent := [name for name in _REQUIRED if name not in present]:
            if ranks and not ("WORLD_SIZE" in ranks and ranks.items() <= _ALONE.items()):
                raise ConfigError(missing(environment, absent, present))
            return None
        rank, local_rank, world_size = (int(environment[n]) for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        local_world_size = whole(environment, "LOCAL_WORLD_SIZE", world_size)
        problems = [
            f"{name}: found {small} beside {of}={most}, expected a number below it"
            for name, small, of, most in (
                ("RANK", rank, "WORLD_SIZE", world_size),
                ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_world_size),
            )
            if small >= most
        ]
        if local_world_size > world_size:
            problems.append(f"LOCAL_WORLD_SIZE: found {local_world_size}, expected at most WORLD_SIZE={world_size}")
        if problems:
            raise ConfigError(problems)
        return cls(
            rank=rank,
            local_rank=local_rank,
            world_size=world_size,
            local_world_size=local_world_size,
            node_rank=whole(environment, "GROUP_RANK", rank // local_world_size),
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
        """Return None for an ordinary run. Raise ConfigError for a part of the variables."""
        if absent := [name for name in REPLICA if not environment.get(name)]:
            if len(absent) < len(REPLICA):
                raise ConfigError(f"{', '.join(absent)}: missing, expected all of {', '.join(REPLICA)}, or none")
            return None
        number, count, coordinator = (environment[name] for name in REPLICA)
        return cls(number=int(number), count=int(count), coordinator=coordinator)


def _trains_alone(environment: Mapping[str, str], read: TorchrunEnvironment | None) -> bool:
    """Return True for a process that no process of another task joins."""
    torchruns = whole(environment, "GROUP_WORLD_SIZE", read.world_size if read else 1)
    # A torchrun of 1 to N nodes may be the first to arrive. Its rendezvous has a name that a user gave.
    run_id = environment.get("TORCHELASTIC_RUN_ID") or "none"
    unnamed = run_id == "none" or re.fullmatch("[0-9a-f-]{36}", run_id) is not None
    return torchruns == 1 and unnamed and Replica.read(environment) is None


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
