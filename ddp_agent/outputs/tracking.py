"""The two records of a run on rank 0: `metrics.jsonl`, which is the truth, and TensorBoard, which mirrors it.

`metrics.jsonl` has one flat JSON object per step, with units in the names: `step`, `unix_s` (wall clock), then the
measurements. An evaluation has `test_<metric>` and, for the other two axes, `train_s` and `payload_bytes`. The keys
are TensorBoard's tags, too.

A resumed run brings the history of the run that it continues, in its own directory or another. Records after the
checkpoint belong to a branch that was given up, and are left out.
"""

import logging
from collections.abc import Callable

from torch import Tensor

from ddp_agent.errors import DataError
from ddp_agent.outputs.metrics_file import MetricsFile, Record
from ddp_agent.outputs.observer import Evaluation, Observer, Result, Start, Values
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.tensorboard import History, TensorBoardMirror, finite_or_none

_log = logging.getLogger(__name__)


class MetricsLog(Observer):
    """Writes `metrics.jsonl`. On a full disk lines are lost and counted in `lost_lines`; training continues.

    A file that somebody deleted or moved is written again, unless its whole directory was. Raises DataError when the
    file cannot be created.
    """

    def __init__(self, directory: RunDirectory, history: History | None = None) -> None:
        self.lost_lines = 0
        self._directory = directory
        try:
            self._file = MetricsFile(directory.metrics, history.records if history else [])
        except OSError as error:
            raise _cannot_be_written(directory, error) from error

    def logged(self, step: int, values: Values) -> None:
        """Write a line. Values that are not finite become null."""
        try:
            self._file.put(_record(step, values))
            if not self._file.is_in_place() and not self._directory.problem():
                _log.warning("%s: deleted or moved by somebody; written again", self._file.path)
                self._file.move_to(self._file.path)
        except OSError as error:
            self.lost_lines += 1
            if self.lost_lines == 1:
                _log.warning("%s: %s; training goes on without", self._file.path, error.strerror or error)

    def evaluated(self, evaluation: Evaluation) -> None:
        self.logged(evaluation.step, evaluation.values)

    def failed(self, error: BaseException) -> None:
        """Write the lines to the directory that the run was given instead of a lost one."""
        if self._directory.metrics != self._file.path:
            try:
                self._file.move_to(self._directory.metrics)
            except OSError as failure:
                _log.warning("%s: %s; the metrics are lost", self._directory.metrics, failure.strerror)

    def close(self) -> None:
        self._file.close()


class TensorBoard(Observer):
    """Mirrors the metrics in TensorBoard. Its first OSError ends the mirror; training continues.

    TensorBoard's writer does not recover from an error in its thread. Raises DataError when the folder cannot be
    written.
    """

    def __init__(self, directory: RunDirectory, metric_name: str, *, history: History | None = None) -> None:
        try:
            mirror = TensorBoardMirror(directory.tensorboard, f"test_{metric_name}")
            if history:
                mirror.replay(history)
        except OSError as error:
            raise _cannot_be_written(directory, error) from error
        self._mirror: TensorBoardMirror | None = mirror

    def begin(self, start: Start) -> None:
        """Describe the model and the configuration. Updates are counted from the weights of `start`."""
        self._mirrored(lambda mirror: mirror.describe(start.model, start.config, start.inputs))

    def logged(self, step: int, values: Values) -> None:
        self._mirrored(lambda mirror: mirror.record(_record(step, values)))

    def evaluated(self, evaluation: Evaluation) -> None:
        self.logged(evaluation.step, evaluation.values)
        self._mirrored(lambda mirror: mirror.histograms(evaluation.model, evaluation.step))

    def picture(self, tag: str, draw: Callable[[], Tensor | None], step: int) -> None:
        """Show the image that `draw` returns, uint8 [height, width, 3]. With None there is nothing to show."""
        if self._mirror is not None and (pixels := draw()) is not None:
            self._mirrored(lambda mirror: mirror.picture(tag, pixels, step))

    def text(self, tag: str, text: str, step: int) -> None:
        """Show a text as it is, line by line."""
        self._mirrored(lambda mirror: mirror.text(tag, text, step))

    def finished(self, result: Result) -> None:
        steps = result.summary["steps"]
        if result.sample is not None:
            self.text("sample", result.sample, steps)
        self._mirrored(lambda mirror: mirror.compare(result.summary, result.hparams))

    def close(self) -> None:
        self._mirrored(TensorBoardMirror.close)
        self._mirror = None

    def _mirrored(self, action: Callable[[TensorBoardMirror], None]) -> None:
        if self._mirror is None:
            return
        try:
            action(self._mirror)
        except OSError as error:
            _log.warning("%s: %s; TensorBoard stops here", self._mirror.directory, error.strerror or error)
            self._mirror = None


def _record(step: int, values: Values) -> Record:
    return {"step": step, **{key: finite_or_none(value) for key, value in values.items()}}


def _cannot_be_written(directory: RunDirectory, error: OSError) -> DataError:
    return DataError(f"{directory.path}: metrics cannot be written ({error.strerror})")
