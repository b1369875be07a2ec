"""The interface of everything that looks at a run: metrics file, TensorBoard, console, previews, traces."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

Values = Mapping[str, float | Tensor | None]
"""Measurements by name, with the unit in the name."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The state of a run before its first step, or before the first step after a resume."""

    model: nn.Module
    """Holds the weights that training starts from."""
    config: Mapping[str, Any]
    step: int
    """Optimizer steps that were taken before: 0 unless the run is resumed."""
    inputs: Tensor | None = None
    """One sample [1, ...] as the model gets it, where there is one."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of the consensus model after `step`."""

    step: int
    values: Values
    model: nn.Module
    """Holds the consensus weights while observers are called."""
    confusion: Tensor | None = None
    """See `Scores.confusion`."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run has to show."""

    summary: Mapping[str, Any]
    hparams: Mapping[str, Any]
    run_dir: Path
    sample: str | None = None
    """Text that the final model made."""


class Observer:
    """A listener without effect; subclasses override what they need.

    Rank 0 has a list of observers, other ranks an empty one (with `profile_steps` the trace alone). `begin` comes
    first, `close` last, also after a failure. A subclass that fails must lose its own output only: training continues.
    """

    def begin(self, start: Start) -> None:
        """Training is about to start."""

    def stepped(self, step: int) -> None:
        """Optimizer step `step` was taken and synchronised."""

    def logged(self, step: int, values: Values) -> None:
        """Something was measured in `step`. Steps never decrease; one step may be logged and evaluated."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """The consensus model was scored."""

    def checkpointed(self, step: int) -> None:
        """A checkpoint of `step` was handed to the writer."""

    def finished(self, result: Result) -> None:
        """The run is complete and its summary is written."""

    def failed(self, error: BaseException) -> None:
        """The run ends with `error`."""

    def close(self) -> None:
        """Nothing more will come. May be called twice."""


def stamped(values: Mapping[str, float | None]) -> Values:
    """Return `values` with `unix_s`, the wall-clock time, so that all observers record the same one."""
    return {"unix_s": round(time.time(), 3), **values}
