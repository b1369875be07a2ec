"""The interface of everything that looks at a run: metrics file, TensorBoard, console, previews, traces."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

_log = logging.getLogger(__name__)

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
    """Results of a finished run."""

    summary: Mapping[str, Any]
    hparams: Mapping[str, Any]
    run_dir: Path
    sample: str | None = None
    """Text that the final model made."""


class Observer:
    """A listener without effect; subclasses override what they need.

    Rank 0 has a list of observers, other ranks an empty one (with `profile_steps` the trace alone). `begin` comes
    first, `close` last, also after a failure. A subclass that fails must lose its own output only: training continues.
    `Expendable` sees to that for those that have no care of their own.
    """

    def begin(self, start: Start) -> None:
        """React to the start of training."""

    def stepped(self, step: int) -> None:
        """React to optimizer step `step`, which was taken and synchronised."""

    def logged(self, step: int, values: Values) -> None:
        """React to measurements of `step`. Steps never decrease; one step may be logged and evaluated."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """React to an evaluation of the consensus model."""

    def checkpointed(self, step: int) -> None:
        """React to a checkpoint of `step`, which was handed to the writer."""

    def finished(self, result: Result) -> None:
        """React to the end of a run whose summary is written."""

    def failed(self, error: BaseException) -> None:
        """React to `error`, which ends the run."""

    def close(self) -> None:
        """Release everything: nothing more will come. May be called twice."""


class Expendable(Observer):
    """Observer whose first exception ends `observer` alone. The log says so; `name` is its subject."""

    def __init__(self, observer: Observer, name: str) -> None:
        self._observer, self._name = observer, name

    def begin(self, start: Start) -> None:
        self._try(lambda observer: observer.begin(start))

    def stepped(self, step: int) -> None:
        self._try(lambda observer: observer.stepped(step))

    def logged(self, step: int, values: Values) -> None:
        self._try(lambda observer: observer.logged(step, values))

    def evaluated(self, evaluation: Evaluation) -> None:
        self._try(lambda observer: observer.evaluated(evaluation))

    def checkpointed(self, step: int) -> None:
        self._try(lambda observer: observer.checkpointed(step))

    def finished(self, result: Result) -> None:
        self._try(lambda observer: observer.finished(result))

    def failed(self, error: BaseException) -> None:
        self._try(lambda observer: observer.failed(error))

    def close(self) -> None:
        self._try(lambda observer: observer.close())

    def _try(self, call: Callable[[Observer], None]) -> None:
        try:
            call(self._observer)
        except Exception as error:
            self._observer = Observer()
            _log.warning("%s: %s: %s; training goes on without", self._name, type(error).__name__, error)


def stamped(values: Mapping[str, float | None]) -> Values:
    """Return `values` with `unix_s`, the wall-clock time, so that all observers record the same one."""
    return {"unix_s": round(time.time(), 3), **values}
