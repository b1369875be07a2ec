"""The check of what a run's model and task return, made once, before training, with the run's own first micro-batch.

A loss that is a sum, or a metric that is a mean already, would otherwise give wrong numbers without a word. The model,
its buffers and the random streams are left as they were, so a run ends with the same bits as without the check. It
costs about two forward passes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ddp_agent.data.loader import Batch, stream
from ddp_agent.data.task import Task
from ddp_agent.errors import ConfigError, NonFiniteError
from ddp_agent.rng import RandomStreams
from ddp_agent.training.contracts import (
    BreachError,
    called,
    compared,
    described,
    in_a_line,
    loss_of,
    metric_problem,
    require_classes,
    require_output,
)

EVALUATED = 512  # samples of one forward pass of evaluation
NO_PAIRS = "dataset: its samples are no pairs (inputs, target) of tensors"


@dataclass(frozen=True)
class Preflight:
    """The check of one rank. `autocast` returns the context of forward passes. `finite`: a loss of NaN is refused."""

    task: Task
    module: nn.Module
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    finite: bool = True

    def check(self, batches: Iterator[Batch], sizes: Sequence[int]) -> None:
        """Try the first of a rank's micro-batches, and test batches of these sizes.

        Raise ConfigError with all problems at once, and NonFiniteError for a loss that is NaN at the start.
        """
        problems = [self._frozen()] if self._frozen() else []
        with untouched(self.module, self.device):
            if not problems:
                problems += self._tried(self._training, partial(next, batches))
            for size in sizes:
                found = self._tried(self._evaluation, partial(self._test_batch, size))
                problems += [f"{line} (in evaluation)" for line in found if line not in problems]
        if problems:
            raise ConfigError(problems)

    def _frozen(self) -> str:
        parameters = list(self.module.parameters())
        if not parameters or any(parameter.requires_grad for parameter in parameters):
            return ""
        return f"model: found all {len(parameters)} parameters frozen (requires_grad=False), expected some to train"

    def _tried(self, part: Callable[[Batch], list[str]], batch: Callable[[], Batch]) -> list[str]:
        try:
            inputs, target = called(NO_PAIRS, batch)
            if not isinstance(inputs, Tensor) or not isinstance(target, Tensor):
                raise BreachError(f"{NO_PAIRS}: found {described(inputs)} and {described(target)}")
            if len(inputs) != len(target):
                raise BreachError(f"dataset: found {len(inputs)} inputs with {len(target)} targets in a batch")
            return part((inputs, target))
        except BreachError as breach:
            return [str(breach)]

    def _training(self, batch: Batch) -> list[str]:
        inputs, target = batch
        objective, augment = self.task.objective, self.task.data.augment
        self.module.train()
        inputs = called("dataset: its transform fails", self.task.data.transformed, inputs)
        if augment is not None:
            inputs = called("dataset: its augmentation fails", augment, inputs)
        output = self._output(inputs, target, "training")
        with self.autocast():
            loss = loss_of(objective.train_loss or objective.loss, output, target)
        if self.finite and not bool(loss.isfinite()):
            raise NonFiniteError(_first_not_finite({"inputs": inputs, "model's output": output, "loss": loss}))
        if not output.requires_grad:
            raise BreachError(
                "model: found an output without a gradient, expected one that depends on trained parameters (no "
                ".detach() and no torch.no_grad() in forward)"
            )
        if not loss.requires_grad:
            raise BreachError("dataset: its loss has no gradient, expected one that depends on the model's output")
        # A target of another type than the output is an error only here for some losses.
        called(compared("loss", output, target), torch.autograd.grad, loss, output, allow_unused=True)
        return []

    @torch.no_grad()
    def _evaluation(self, batch: Batch) -> list[str]:
        inputs, target = batch
        objective = self.task.objective
        self.module.eval()
        inputs = called("dataset: its transform fails", self.task.data.transformed, inputs)
        output = self._output(inputs, target, "evaluation").float()
        problems = []
        try:
            loss_of(objective.loss, output, target)
        except BreachError as breach:
            problems.append(str(breach))
        for name, metric in {objective.metric_name: objective.metric, **objective.more_metrics}.items():
            value = called(compared(f"metric {name}", output, target), metric, output, target)
            if wrong := metric_problem(value, len(output), self.device):
                problems.append(f"dataset: its metric {name} {wrong}")
            elif name == objective.metric_name and objective.finish is not None:
                finished = called("dataset: its finish fails", objective.finish, float(value.double().mean()))
                if not isinstance(finished, float | int):
                    problems.append(f"dataset: its finish returns {described(finished)}, expected a number")
        if objective.guess is not None and target.dim() == 1:
            guess = called(compared("guess", output, target), objective.guess, output)
            if not isinstance(guess, Tensor) or guess.shape != target.shape or guess.dtype != torch.int64:
                problems.append(
                    f"dataset: its guess returns {described(guess)}, expected one class per sample, "
                    f"int64 {list(target.shape)}"
                )
        return problems

    def _output(self, inputs: Tensor, target: Tensor, when: str) -> Tensor:
        name = f"model: {type(self.module).__name__}"
        classes = self.task.objective.outputs if self.task.objective.guess is not None else None
        with self.autocast():
            try:
                output = called(f"{name} cannot take the dataset's inputs, {described(inputs)}", self.module, inputs)
            except BreachError as breach:
                if len(inputs) == 1 and when == "training" and _normalises(self.module):
                    raise BreachError(
                        "global_batch_size: found micro-batches of 1 sample, and BatchNorm needs 2 in training "
                        f"({in_a_line(breach.__cause__ or breach)}); expected at least 2 samples per rank and "
                        "accumulation step, or a model with another normalisation"
                    ) from breach
                raise
        require_output(output, len(inputs), self.device, name)
        assert isinstance(output, Tensor)
        if classes is not None:
            require_classes(output, target, classes, name)
        return output

    def _test_batch(self, count: int) -> Batch:
        data = self.task.data
        with closing(stream(data.test, [list(range(count))], device=self.device, workers=data.workers)) as batches:
            return next(batches)


def test_sizes(task: Task, micro_batch: int) -> list[int]:
    """Return the sizes of the test batches to try: one as large as a micro-batch, and a last one of a lone sample."""
    count = task.data.test_count
    usual = min(count, EVALUATED, max(micro_batch, 2))
    return [usual, 1] if count % EVALUATED == 1 and usual > 1 else [usual]


@contextmanager
def untouched(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore the state of `module` and the random streams after: values, attributes, and which tensors they are."""
    streams = RandomStreams(device)
    random, numpy_random = streams.state_dict(), numpy.random.get_state()  # an augmentation may use it
    tables = [
        (table, dict(table))
        for each in module.modules()
        for table in (vars(each), each._parameters, each._buffers, each._modules)
    ]
    values = [(tensor, tensor.detach().clone()) for tensor in chain(module.parameters(), module.buffers())]
    try:
        yield
    finally:
        for table, content in tables:
            table.clear()
            table.update(content)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        streams.load_state_dict(random)
        numpy.random.set_state(numpy_random)


def _normalises(module: nn.Module) -> bool:
    return any(isinstance(each, _BatchNorm) for each in module.modules())


def _first_not_finite(values: dict[str, Tensor]) -> str:
    """Return which of the values holds NaN or infinities first. The last one does."""
    name = next(name for name, value in values.items() if not bool(value.isfinite().all()))
    return f"the {name} of the first micro-batch holds NaN or infinite values, before any training"
