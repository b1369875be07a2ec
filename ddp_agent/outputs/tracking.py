"""What a run measures, as it happens: `metrics.jsonl` is the truth, TensorBoard mirrors it.

One flat JSON object a step, units in the names: `step`, `unix_s` (wall clock), then what was measured.
An evaluation has `test_<metric>` and, for the other two axes, `train_s` and `payload_bytes`. The keys are
TensorBoard's tags, too. A full disk costs metrics, never the training.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ddp_agent.errors import DataError
from ddp_agent.outputs.metrics_file import MetricsFile, Record
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.tensorboard import History, TensorBoardMirror, finite_or_none

Values = Mapping[str, float | Tensor | None]

_log = logging.getLogger(__name__)


class NullTracker:
    """What the ranks other than 0 use in place of a Tracker."""

    lost_lines = 0

    def describe(self, model: nn.Module, config: Mapping[str, Any], specimen: Tensor | None = None) -> None: ...

    def log(self, step: int, values: Values) -> None: ...

    def evaluation(
        self, step: int, values: Values, *, train_s: float, payload_bytes: int, model: nn.Module | None = None
    ) -> None: ...

    def picture(self, tag: str, draw: Callable[[], Tensor | None], step: int) -> None: ...

    def text(self, tag: str, text: str, step: int) -> None: ...

    def finish(self, summary: Mapping[str, Any], hparams: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """Rank 0's record of a run.

    A resumed run brings the history of the one it continues, in its own directory or another; what came after
    the checkpoint happened on a branch that was given up.
    """

    def __init__(self, directory: RunDirectory, metric_name: str, *, history: History | None = None) -> None:
        self.lost_lines = 0
        try:
            self._file = MetricsFile(directory.metrics, history.records if history else [])
            mirror = TensorBoardMirror(directory.tensorboard, f"test_{metric_name}")
            if history:
                mirror.replay(history)
        except OSError as error:
            raise DataError(f"{directory.path}: metrics cannot be written ({error.strerror})") from error
        self._mirror: TensorBoardMirror | None = mirror

    def describe(self, model: nn.Module, config: Mapping[str, Any], specimen: Tensor | None = None) -> None:
        """Once, when `model` holds the weights that training starts from: updates are counted from them.

        With a `specimen` [1, ...] of what the model gets, layers are shown with shapes and FLOPs.
        """
        self._reflect(lambda mirror: mirror.describe(model, config, specimen))

    def log(self, step: int, values: Values) -> None:
        """Steps may be logged and then evaluated, or the other way round, but never go back."""
        measured = {key: finite_or_none(value) for key, value in values.items()}
        record = {"step": step, "unix_s": round(time.time(), 3), **measured}
        self._write(record)
        self._reflect(lambda mirror: mirror.record(record))

    def evaluation(
        self, step: int, values: Values, *, train_s: float, payload_bytes: int, model: nn.Module | None = None
    ) -> None:
        """`train_s` and `payload_bytes` so far; `model` as tested (inside `eval_weights`), for histograms."""
        self.log(step, {**values, "train_s": train_s, "payload_bytes": payload_bytes})
        if model is not None:
            self._reflect(lambda mirror: mirror.histograms(model, step))

    def picture(self, tag: str, draw: Callable[[], Tensor | None], step: int) -> None:
        """`draw` gives uint8 [height, width, 3], or None where there is nothing to see."""
        if self._mirror is not None and (pixels := draw()) is not None:
            self._reflect(lambda mirror: mirror.picture(tag, pixels, step))

    def text(self, tag: str, text: str, step: int) -> None:
        """Shown as it is, line by line."""
        self._reflect(lambda mirror: mirror.text(tag, text, step))

    def finish(self, summary: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
        self._reflect(lambda mirror: mirror.compare(summary, hparams))
        self.close()

    def close(self) -> None:
        self._reflect(TensorBoardMirror.close)
        self._mirror = None
        self._file.close()

    def _write(self, record: Record) -> None:
        try:
            self._file.put(record)
        except OSError as error:
            self.lost_lines += 1
            if self.lost_lines == 1:
                _log.warning("%s: %s; training goes on without", self._file.path, error.strerror or error)

    def _reflect(self, action: Callable[["TensorBoardMirror"], None]) -> None:
        """TensorBoard's writer does not recover from an error in its thread, so the first ends the mirror."""
        if self._mirror is None:
            return
        try:
            action(self._mirror)
        except OSError as error:
            _log.warning("%s: %s; TensorBoard stops here", self._mirror.directory, error.strerror or error)
            self._mirror = None
