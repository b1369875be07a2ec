"""Exact evaluation over all ranks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ddp_agent.data.loader import Batch, stream
from ddp_agent.data.task import Task
from ddp_agent.distributed.comm import Comm

BATCH = 512  # samples of one forward pass
MOST_CLASSES = 1024  # whose confusion is counted: 8 MB for the most


@dataclass(frozen=True)
class Scores:
    """Over the test set: the mean loss, the metric, and more of them by name."""

    loss: float
    metric: float
    more: Mapping[str, float]
    confusion: Tensor | None = field(default=None, compare=False)
    """Samples by class and by guess, int64 [classes, classes]; None for data without classes, or with too many."""


class Evaluator:
    """Scores a model on a task's test set, every sample once, shared among the ranks.

    The set is cut into batches of fixed content; rank r takes batches r, r + K, … and their sums are added in batch
    order in fp64. So the result is the same number for any number of ranks K.
    """

    def __init__(self, task: Task, comm: Comm, device: torch.device) -> None:
        self._task = task
        self._comm = comm
        self._device = device
        count = task.data.test_count
        self._starts = list(range(0, count, BATCH))
        self._count = count
        self._guess = task.objective.guess if task.objective.outputs <= MOST_CLASSES else None
        self._classes = task.objective.outputs if self._guess else 0
        self._resident: tuple[Tensor, ...] | None = None
        if isinstance(task.data.test, TensorDataset):
            self._resident = tuple(tensor.to(device) for tensor in task.data.test.tensors)

    def __call__(
        self, model: nn.Module, autocast: Callable[[], AbstractContextManager[Any]], *, alone: bool = False
    ) -> Scores:
        """A collective, not counted. `alone`: this rank scores its own model on the whole set."""
        first, stride = (0, 1) if alone else (self._comm.rank, self._comm.size)
        mine = list(range(first, len(self._starts), stride))
        task = self._task
        metrics = (task.objective.metric, *task.objective.more_metrics.values())
        sums = torch.zeros(len(self._starts), 1 + len(metrics), dtype=torch.float64, device=self._device)
        counts = torch.zeros(self._classes**2, dtype=torch.int64, device=self._device)
        with inference(model):
            for batch, (inputs, target) in zip(mine, self._batches(mine), strict=True):
                inputs = task.data.transformed(inputs)  # not under autocast
                with autocast():
                    output = model(inputs).float()
                found = [task.objective.loss(output, target).double() * len(output)]
                sums[batch] = torch.stack([*found, *(metric(output, target).double().sum() for metric in metrics)])
                self._count_(counts, output, target)
        sums, counts = sums.to(self._comm.device), counts.to(self._comm.device)
        if not alone:
            with self._comm.uncounted():
                self._comm.all_reduce_(sums)
                if self._guess:
                    self._comm.all_reduce_(counts)
        loss, metric, *more = (sums.sum(0) / self._count).tolist()
        finished = task.objective.finish(metric) if task.objective.finish else metric
        confusion = counts.cpu().view(self._classes, self._classes) if counts.any() else None
        return Scores(loss, finished, dict(zip(task.objective.more_metrics, more, strict=True)), confusion)

    def _count_(self, counts: Tensor, output: Tensor, target: Tensor) -> None:
        if self._guess and target.dim() == 1:  # not where a sample has several labels
            pairs = target * self._classes + self._guess(output)
            counts.scatter_add_(0, pairs, torch.ones_like(pairs))

    def _batches(self, batches: list[int]) -> Iterator[Batch]:
        spans = [(self._starts[batch], min(self._starts[batch] + BATCH, self._count)) for batch in batches]
        if self._resident is not None:
            inputs, targets = self._resident
            return ((inputs[start:stop], targets[start:stop]) for start, stop in spans)
        indices = (list(range(start, stop)) for start, stop in spans)
        return stream(self._task.data.test, indices, device=self._device, workers=self._task.data.workers)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is put back after."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def recalibrate_(model: nn.Module, inputs: Iterator[Tensor]) -> None:
    """Estimates BatchNorm statistics anew as plain averages over `inputs`; torch's random streams stay as they were."""
    devices = [next(model.parameters()).device] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
        torch.optim.swa_utils.update_bn(inputs, model)
