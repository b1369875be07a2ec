"""A trace of some steps for Perfetto, with a named region for each phase. Costs nothing unless asked for."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from ddp_agent.config.options import UNTRACED_STEPS
from ddp_agent.training.clock import Clock, Phase
from ddp_agent.training.trainer import Trainer

log = logging.getLogger(__name__)

WARM_UP_STEPS = 2  # the last of those that are not traced: the profiler itself gets ready


@contextmanager
def traced(trainer: Trainer, steps: int, path: Path) -> Iterator[None]:
    """Inside, `steps` training steps are recorded; the trace is written to `path`, compressed, when they are done.

    Regions lie one in the other: the phases of the clock, and in them the hooks of the sync mode, the optimizer (by
    torch itself) and every moment in which compute stands still for communication.
    """
    activities = [ProfilerActivity.CPU]
    if trainer.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)

    def write(recorded: profile) -> None:
        recorded.export_chrome_trace(str(path))
        log.info("%d steps traced in %s; open it in https://ui.perfetto.dev", steps, path)

    windows = schedule(wait=UNTRACED_STEPS - WARM_UP_STEPS, warmup=WARM_UP_STEPS, active=steps, repeat=1)
    with (
        profile(activities=activities, schedule=windows, on_trace_ready=write) as recorder,
        _regions(trainer, recorder),
    ):
        yield


@contextmanager
def _regions(trainer: Trainer, recorder: profile) -> Iterator[None]:
    """Wraps methods of these objects alone, and takes the wrappers off again."""
    phases = _Phases(trainer.clock)
    wrapped: list[tuple[Any, str]] = []

    def wrap(owner: Any, name: str, method: Callable[..., Any]) -> None:
        setattr(owner, name, method)
        wrapped.append((owner, name))

    def after_step(step: int, call: Callable[[int], None] = trainer.sync.after_step) -> None:
        with record_function("sync.after_step"):
            call(step)
        phases.leave()
        recorder.step()

    @contextmanager
    def blocked(*arguments: Any, call: Callable[..., Any] = trainer.topology.world.ledger.blocked) -> Iterator[None]:
        with record_function("communication"), call(*arguments):
            yield

    wrap(trainer.clock, "enter", phases.enter)
    wrap(trainer.sync, "before_step", _region("sync.before_step", trainer.sync.before_step))
    wrap(trainer.sync, "after_step", after_step)
    wrap(trainer.topology.world.ledger, "blocked", blocked)
    wrap(trainer, "loss", _region("forward", trainer.loss))
    try:
        yield
    finally:
        phases.leave()
        for owner, name in wrapped:
            delattr(owner, name)


def _region(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **keywords: Any) -> Any:
        with record_function(name):
            return method(*arguments, **keywords)

    return call


class _Phases:
    """Makes a region of each phase of a clock."""

    def __init__(self, clock: Clock) -> None:
        self._enter = clock.enter
        self._region: torch.autograd.profiler.record_function | None = None

    def enter(self, phase: Phase | None) -> None:
        self.leave()
        self._enter(phase)
        if phase is not None:
            self._region = record_function(phase)
            self._region.__enter__()

    def leave(self) -> None:
        if self._region is not None:
            self._region.__exit__(None, None, None)
            self._region = None
