"""Exact evaluation of the consensus model, shared among the ranks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ddp_agent.data.loader import Batch, stream
from ddp_agent.data.task import Task
from ddp_agent.distributed.comm import Comm, mean_
from ddp_agent.outputs.confusion import values as class_accuracies
from ddp_agent.outputs.observer import Evaluation, Observer, stamped
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.preflight import EVALUATED
from ddp_agent.training.session import Session

BATCH = EVALUATED
MOST_CLASSES = 1024  # with more, confusion is not counted: its table would take more than 8 MB


@dataclass(frozen=True)
class Scores:
    """The mean loss over the test set, the metric, and further metrics by name."""

    loss: float
    metric: float
    more: Mapping[str, float]
    confusion: Tensor | None = field(default=None, compare=False)
    """Samples by class and by guess, int64 [classes, classes]. None for data without classes or with too many."""


class Evaluator:
    """Scorer of models on a task's test set. Every sample is evaluated once, on one of the ranks.

    The set is cut into batches of fixed content. Rank r takes batches r, r + K, … and their sums are added in batch
    order in fp64, so the result is the same number for any number of ranks K.
    """

    def __init__(self, task: Task, comm: Comm, device: torch.device) -> None:
        self._task, self._comm, self._device = task, comm, device
        self._count = task.data.test_count
        self._starts = range(0, self._count, BATCH)
        self._guess = task.objective.guess if task.objective.outputs <= MOST_CLASSES else None
        self._classes = task.objective.outputs if self._guess else 0
        test = task.data.test
        self._resident = [part.to(device) for part in test.tensors] if isinstance(test, TensorDataset) else None

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
                self._comm.ledger.progress.move()
                inputs = task.data.transformed(inputs)  # not under autocast
                with autocast():
                    output = model(inputs).float()
                loss_sum = task.objective.loss(output, target).double() * len(output)
                sums[batch] = torch.stack([loss_sum, *(metric(output, target).double().sum() for metric in metrics)])
                if self._guess and target.dim() == 1:  # not where a sample has several labels
                    pairs = target * self._classes + self._guess(output)
                    counts.scatter_add_(0, pairs, torch.ones_like(pairs))
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


@dataclass(frozen=True)
class Scored:
    """The last evaluation. `best`: its metric was the best so far."""

    step: int
    metric: float
    best: bool


class Scorer:
    """Evaluation of the consensus model, and if asked of its moving average and of rank 0's own model."""

    def __init__(self, session: Session, observers: Sequence[Observer] = ()) -> None:
        self.latest: Scored | None = None
        self._session, self._observers = session, observers
        setup = session.setup
        self._evaluate = Evaluator(setup.task, setup.topology.world, setup.device)

    def score(self, step: int) -> Scores:
        """Return the scores after `step` and show them to the observers. A collective."""
        session, setup, autocast = self._session, self._session.setup, self._session.forward.autocast
        options, sync, module = setup.options, setup.sync, setup.module
        session.compare_ranks()
        values: dict[str, float | None] = {}
        if not options.consensus_every:
            values["consensus_distance"] = sync.consensus_distance()
        if options.evaluate_own and setup.topology.world.rank == 0:
            values |= self._named("own_test_{}", self._evaluate(module, autocast, alone=True))
        with sync.eval_weights():
            if sync.buffers == "recalibrate":
                recalibrate(session)
            scores = self._evaluate(module, autocast)
            values |= self._named("test_{}", scores)
            per_class = class_accuracies(scores.confusion, setup.task.presentation.class_names)
            if session.ema:
                with session.ema.eval_weights(internals(sync).mean_) as averaged:
                    values |= self._named("ema_test_{}", self._evaluate(averaged, autocast))
            costs, higher = session.costs(), setup.task.objective.higher_is_better
            best = session.best.note(scores.metric, options.target, higher_is_better=higher, step=step, costs=costs)
            self.latest = Scored(step, scores.metric, best)
            stamp = stamped(values | per_class | costs)
            shown = Evaluation(step=step, values=stamp, model=module, confusion=scores.confusion)
            for observer in self._observers:
                observer.evaluated(shown)
        setup.topology.world.barrier()  # else the time of rank 0's observers would count as others' communication
        return scores

    def _named(self, pattern: str, scores: Scores) -> dict[str, float]:
        values = {"loss": scores.loss, self._session.setup.task.objective.metric_name: scores.metric, **scores.more}
        return {pattern.format(name): value for name, value in values.items()}


def recalibrate(session: Session) -> None:
    """Average BatchNorm statistics anew over all ranks' first batches. torch's random streams are kept."""
    setup = session.setup
    world = setup.topology.world
    few = islice(session.batches.steps(1, setup.total_steps), setup.options.recalibrate_batches)  # fewer in a short run
    with torch.random.fork_rng(devices=[setup.device] if setup.device.type == "cuda" else []):
        torch.optim.swa_utils.update_bn((setup.task.data.transformed(inputs) for inputs, _ in few), setup.module)
    with world.uncounted():
        mean_(internals(setup.sync).flat.buffers, world)
