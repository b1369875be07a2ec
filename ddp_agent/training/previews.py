"""What rank 0 shows of the consensus model at every evaluation, for people to look at in TensorBoard.

A picture of predictions, or a text of them; which classes are taken for which; what the model writes or recommends.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddp_agent.data.loader import Batch, stream
from ddp_agent.data.task import Task
from ddp_agent.outputs.confusion import Confusion
from ddp_agent.outputs.images.confusion import confusion
from ddp_agent.outputs.images.pixels import pixels, visible
from ddp_agent.outputs.images.predictions import lines, sheet
from ddp_agent.outputs.tracking import Tracker
from ddp_agent.training.evaluate import Scores, inference

SHOWN = 24  # test samples, the same ones every time

_log = logging.getLogger(__name__)


class NullExhibition:
    """What the ranks other than 0 use in place of an Exhibition."""

    def specimen(self) -> Tensor | None:
        return None

    def show(self, step: int, model: nn.Module, scores: Scores) -> None: ...


class Exhibition:
    """Whatever fails here costs what is shown, once and for all, never the training."""

    def __init__(self, task: Task, tracker: Tracker, device: torch.device, *, last_step: int) -> None:
        """What the model makes after `last_step` is shown by whoever writes it to a file."""
        self._task, self._tracker, self._last_step = task, tracker, last_step
        self._open = True
        self._places = spread(task.data.test_count)
        self._inputs, self._labels = torch.empty(0), torch.empty(0)
        with self._harmless():
            self._inputs, self._labels = chosen(task, self._places, device)

    def specimen(self) -> Tensor | None:
        """One sample [1, ...] as the model gets it; None where none could be had."""
        return self._inputs[:1] if self._open else None

    def show(self, step: int, model: nn.Module, scores: Scores) -> None:
        """`model` as tested (inside `eval_weights`)."""
        if not self._open:
            return
        with self._harmless():
            if scores.confusion is not None:
                found = Confusion(scores.confusion, self._task.presentation.class_names)
                self._tracker.picture("confusion", lambda: confusion(found), step)
                self._tracker.text("classes", found.words(), step)
            with inference(model), torch.compiler.set_stance("force_eager"):  # another batch size would compile anew
                self._show_predictions(step, model)
                if self._task.presentation.sample is not None and step < self._last_step:
                    self._tracker.text("sample", self._task.presentation.sample(model), step)

    def _show_predictions(self, step: int, model: nn.Module) -> None:
        guess, shown = self._task.objective.guess, self._task.presentation
        drawn = visible(tuple(self._inputs.shape[1:]))
        if guess is None or self._labels.dim() != 1 or not (drawn or shown.test_texts):
            return
        labels, guesses = self._names(self._labels), self._names(guess(model(self._inputs).float()))
        if drawn:
            self._tracker.picture("predictions", lambda: sheet(pixels(self._inputs, shown.look), labels, guesses), step)
        else:
            self._tracker.text("predictions", lines([shown.test_texts[i] for i in self._places], labels, guesses), step)

    def _names(self, classes: Tensor) -> list[str]:
        names = self._task.presentation.class_names
        return [names[label] if names else str(label) for label in classes.tolist()]

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open = False
            _log.warning("no more pictures and texts: %s: %s; training goes on", type(error).__name__, error)


def spread(count: int) -> list[int]:
    """Evenly over a test set, which may be sorted by class."""
    shown = min(SHOWN, count)
    return [place * count // shown for place in range(shown)]


def chosen(task: Task, places: list[int], device: torch.device) -> Batch:
    """The test samples at `places`, as the model gets them, and their targets."""
    inputs, target = next(stream(task.data.test, [places], device=device, workers=0))
    return task.data.transformed(inputs), target
