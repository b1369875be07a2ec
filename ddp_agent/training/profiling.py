"""A trace of some steps for Perfetto, with a named region for each phase. Costs nothing unless asked for."""

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from ddp_agent.config.options import UNTRACED_STEPS
from ddp_agent.distributed.regions import record_regions
from ddp_agent.outputs.observer import Observer, Start
from ddp_agent.training.clock import Phase

log = logging.getLogger(__name__)

WARM_UP_STEPS = 2  # the last of the untraced steps, in which the profiler itself gets ready


class Trace(Observer):
    """Recorder of `steps` training steps, which writes a compressed trace to `path` after them.

    It is a meter of the clock, too, so that the trace has a region per phase. Inside of the phases lie the hooks of the
    sync mode, the optimizer (by torch itself) and every moment in which compute waits for communication.
    """

    def __init__(self, steps: int, path: Path, device: torch.device) -> None:
        def write(recorded: profile) -> None:
            recorded.export_chrome_trace(str(path))
            log.info("%d steps traced in %s; open it in https://ui.perfetto.dev", steps, path)

        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])],
            schedule=schedule(wait=UNTRACED_STEPS - WARM_UP_STEPS, warmup=WARM_UP_STEPS, active=steps, repeat=1),
            on_trace_ready=write,
        )
        self._recording = False
        self._region: record_function | None = None

    def begin(self, start: Start) -> None:
        self._recording = True
        record_regions(True)
        self._profile.start()

    def measure(self, phase: Phase | None) -> None:
        """Close the region of the phase before and open the one of `phase`."""
        if self._region is not None:
            self._region.__exit__(None, None, None)
            self._region = None
        if self._recording and phase is not None:
            self._region = record_function(phase)
            self._region.__enter__()

    def stepped(self, step: int) -> None:
        self.measure(None)  # a region must not cross the border of the recorded steps
        self._profile.step()

    def close(self) -> None:
        if self._recording:
            self._recording = False
            self.measure(None)
            self._profile.stop()
            record_regions(False)
