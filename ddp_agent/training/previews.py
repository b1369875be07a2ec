"""Previews of the consensus model for people who look at TensorBoard: predictions, confusions, samples, shards."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddp_agent.data.loader import stream
from ddp_agent.data.shard_stats import ShardStats
from ddp_agent.data.task import Task
from ddp_agent.outputs.confusion import Confusion
from ddp_agent.outputs.images.pixels import pixels, visible
from ddp_agent.outputs.images.predictions import sheet, text_list
from ddp_agent.outputs.images.tables import confusion_table, shard_table
from ddp_agent.outputs.observer import Evaluation, Observer, Start
from ddp_agent.outputs.tracking import TensorBoard
from ddp_agent.training.evaluate import inference

SHOWN = 24  # test samples, the same ones every time

_log = logging.getLogger(__name__)


class Previews(Observer):
    """Writer of prediction previews to TensorBoard.

    An exception disables previews for the rest of the run and is logged; training continues. The text that the model
    writes after `last_step` is not shown here: `TensorBoard.finished` shows it together with its file.
    """

    def __init__(
        self, task: Task, board: TensorBoard, device: torch.device, *, last_step: int, stats: ShardStats | None = None
    ) -> None:
        self._task, self._board, self._last_step, self._shard_stats = task, board, last_step, stats
        self._enabled = True
        self._indices = spread(task.data.test_count)
        self._inputs, self._labels = torch.empty(0), torch.empty(0)
        with self._harmless():
            inputs, self._labels = next(stream(task.data.test, [self._indices], device=device, workers=0))
            self._inputs = task.data.transformed(inputs)

    @property
    def example(self) -> Tensor | None:
        """One sample [1, ...] as the model gets it. None if none could be loaded."""
        return self._inputs[:1] if self._enabled else None

    def begin(self, start: Start) -> None:
        """Draw the shards of a new run."""
        if (stats := self._shard_stats) and start.step == 0:
            self._board.picture("shards", lambda: shard_table(stats, self._task.presentation.class_names), 0)

    def evaluated(self, evaluation: Evaluation) -> None:
        if not self._enabled:
            return
        task, step, model = self._task, evaluation.step, evaluation.model
        with self._harmless():
            if evaluation.confusion is not None:
                table = Confusion(evaluation.confusion, task.presentation.class_names)
                self._board.picture("confusion", lambda: confusion_table(table), step)
                self._board.text("classes", table.text(), step)
            with inference(model), torch.compiler.set_stance("force_eager"):  # a new batch size would compile again
                self._show_predictions(step, model)
                if task.presentation.sample is not None and step < self._last_step:
                    self._board.text("sample", task.presentation.sample(model), step)

    def _show_predictions(self, step: int, model: nn.Module) -> None:
        guess, shown = self._task.objective.guess, self._task.presentation
        drawn = visible(tuple(self._inputs.shape[1:]))
        if guess is None or self._labels.dim() != 1 or not (drawn or shown.test_texts):
            return
        labels, guesses = self._names(self._labels), self._names(guess(model(self._inputs).float()))
        if drawn:
            self._board.picture("predictions", lambda: sheet(pixels(self._inputs, shown.look), labels, guesses), step)
        else:
            texts = [shown.test_texts[index] for index in self._indices]
            self._board.text("predictions", text_list(texts, labels, guesses), step)

    def _names(self, classes: Tensor) -> list[str]:
        names = self._task.presentation.class_names
        return [names[label] if names else str(label) for label in classes.tolist()]

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._enabled = False
            _log.warning("no more pictures and texts: %s: %s; training goes on", type(error).__name__, error)


def spread(count: int) -> list[int]:
    """Return up to `SHOWN` indices, spread evenly over a test set of `count` samples, which may be sorted by class."""
    shown = min(SHOWN, count)
    return [index * count // shown for index in range(shown)]
