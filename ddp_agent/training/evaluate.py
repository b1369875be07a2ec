"""Exact evaluation of a model, shared among the ranks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ddp_agent.data.loader import Batch, stream
from ddp_agent.data.task import Task
from ddp_agent.distributed.comm import Comm

BATCH = 512  # samples of one forward pass
MOST_CLASSES = 1024  # with more, confusion is not counted: its table would take more than 8 MB


@dataclass(frozen=True)
class Scores:
    """The mean loss over the test set, the metric, and further metrics by name."""

    loss: float
    metric: float
    more: Mapping[str, float]
    confusion: Tensor | None = field(default=None, compare=False)
    """Samples by class and by guess, int64 [classes, classes]. None for data without classes or with too many."""


@dataclass
class BestScore:
    """The best metric so far, and what it took to reach the target. Not reached is None, never a large number."""

    best_metric: float | None = None
    time_to_target_s: float | None = None
    bytes_to_target: int | None = None
    steps_to_target: int | None = None

    def note(
        self, metric: float, target: float | None, *, higher_is_better: bool, step: int, costs: Mapping[str, float]
    ) -> bool:
        """Take in the evaluation after `step`, which cost `train_s` and `payload_bytes`. Return whether it is best."""
        better = max if higher_is_better else min
        improved = self.best_metric is None or better(self.best_metric, metric) != self.best_metric
        self.best_metric = metric if improved else self.best_metric
        if self.steps_to_target is None and target is not None and better(metric, target) == metric:
            self.steps_to_target = step
            self.time_to_target_s, self.bytes_to_target = costs["train_s"], int(costs["payload_bytes"])
        return improved

    def state_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)


class Evaluator:
    """Scorer of models on a task's test set. Every sample is evaluated once, on one of the ranks.

    The set is cut into batches of fixed content. Rank r takes batches r, r + K, … and their sums are added in batch
    order in fp64, so the result is the same number for any number of ranks K.
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
        """Return the scores of `model`. A collective that is not counted.

        With `alone` this rank scores its own model on the whole set, without a collective.
        """
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
                loss_sum = task.objective.loss(output, target).double() * len(output)
                sums[batch] = torch.stack([loss_sum, *(metric(output, target).double().sum() for metric in metrics)])
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
    """Switch to evaluation mode without gradients. The mode before is restored after."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def recalibrate_(model: nn.Module, inputs: Iterator[Tensor]) -> None:
    """Estimate BatchNorm statistics from scratch as plain averages over `inputs`. torch's random streams are kept."""
    devices = [next(model.parameters()).device] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
        torch.optim.swa_utils.update_bn(inputs, model)
