"""Points where tests hurt a run. They are patched from here: a run outside of the tests has none.

Fault("averaging", "SIGKILL", rank=1, step=8)
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddp_agent.checkpoint import manifest, saving
from ddp_agent.data.sample_order import SampleOrder
from ddp_agent.distributed import process_group_comm, standstill
from ddp_agent.elastic import membership
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training import session, trainer

# What is called when a run gets there. The method of a class runs after the fault; in "averaging" it has begun.
POINTS: dict[str, tuple[Any, str]] = {
    "step": (session.Session, "set_lr"),
    "data": (SampleOrder, "take"),
    "forward": (session.Forward, "_loss"),
    "averaging": (process_group_comm.ProcessGroupComm, "start_all_reduce_"),
    "half a file": (saving.HashedFile, "write"),
    "before the manifest": (manifest.Manifest, "write"),
    "before the rename": (saving, "_publish"),
    "deleting the old": (saving, "_prune"),
    "evaluation": (trainer.Trainer, "evaluate"),
    "asking": (membership.Membership, "ask"),
}


@dataclass(frozen=True)
class Fault:
    """Happens on `rank` (None: on all) the first time that it is at `point` in or after `step`, in one attempt."""

    point: str
    action: str  # a signal, or one of ACTIONS
    rank: int | None = 1
    step: int = 1
    attempt: int | None = 0  # None: in each
    after_s: float = 0.0


class BugError(Exception):
    """Error that stands for an exception in a user's model."""


def _raise(*_: Any) -> None:
    raise BugError("a bug in the model")


def _nan(at: session.Forward, model: torch.nn.Module, inputs: torch.Tensor, *_: Any) -> None:
    inputs.view(-1)[0] = float("nan")


def _overflow(at: session.Forward, *_: Any) -> None:
    """The loss is finite, the gradient is not."""
    next(at.module.parameters()).register_hook(lambda gradient: gradient + float("inf"))


def _flip(at: session.Session, *_: Any) -> None:
    with torch.no_grad():
        internals(at.setup.sync).flat.parameters.view(torch.int32)[3] ^= 4


def _half(file: saving.HashedFile, data: Any) -> None:
    os.write(file.fileno(), bytes(memoryview(data).cast("B"))[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def _signal(*_: Any) -> None:
    Path(os.environ["FAULT_SIGNAL"]).touch()


def _hold(*_: Any) -> None:
    """Until another has signalled."""
    deadline = time.monotonic() + 60
    while not Path(os.environ["FAULT_SIGNAL"]).exists():
        time.sleep(0.01)
        assert time.monotonic() < deadline


def _stall(*_: Any) -> None:
    """All threads of this process stand still for 4.5 s, as on a machine that swaps."""
    rank = os.getpid()
    if os.fork() == 0:
        time.sleep(4.5)
        os.kill(rank, signal.SIGCONT)
        os._exit(0)
    os.kill(rank, signal.SIGSTOP)


def _impatient(*_: Any) -> None:
    """Long activities may take twice `timeout_s`, without a minimum."""
    standstill.LONG, standstill.LONG_S = 2, 0.0


ACTIONS: dict[str, Callable[..., None]] = {
    "raise": _raise,
    "nan": _nan,
    "overflow": _overflow,
    "flip a bit": _flip,
    "write half": _half,
    "slow": lambda *_: time.sleep(0.02),
    "signal": _signal,
    "hold": _hold,
    "doze": lambda *_: time.sleep(1.5),
    "pause": lambda *_: time.sleep(5),
    "sleep": lambda *_: time.sleep(600),
    "stall": _stall,
    "be impatient": _impatient,
}
REPEATED = ("slow", "nan")

_current_step = 0


def arm(faults: list[Fault], rank: int, attempt: int) -> None:
    """Patch this rank before it begins."""
    for fault in faults:
        if fault.rank in (None, rank) and fault.attempt in (None, attempt):
            owner, name = POINTS[fault.point]
            patch(owner, name, Trigger(fault))
    patch(session.Session, "set_lr", _note_step)  # the last patch is the first to be called


def patch(owner: Any, name: str, before: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        before(*args)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def _note_step(at: session.Session, step: int) -> None:
    global _current_step
    _current_step = step


class Trigger:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.pending = True

    def __call__(self, *args: Any) -> None:
        if not self.pending or _current_step < self.fault.step:
            return
        self.pending = self.fault.action in REPEATED
        if self.fault.after_s:
            threading.Timer(self.fault.after_s, self._happen, args).start()
        else:
            self._happen(*args)

    def _happen(self, *args: Any) -> None:
        if self.fault.action in ACTIONS:
            ACTIONS[self.fault.action](*args)
        else:
            os.kill(os.getpid(), signal.Signals[self.fault.action])
