"""Several tasks on the same inputs: a label of each sample for every task, and their outputs side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ddp_agent.data.classification import LOSSES, LossName, accuracy
from ddp_agent.data.task import Criterion, Subtask, Task, fingerprint


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Classes of the training and of the test samples, int64 [samples], from 0, and the classes' names."""

    train: Tensor
    test: Tensor
    names: tuple[str, ...]


def check_tasks(tasks: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError for none, and for one that is asked for twice."""
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks: found [{', '.join(tasks)}], expected one or more of {', '.join(known)}, each once")


def multi_task(task: Task, labels: Mapping[str, Labels], loss: LossName) -> Task:
    """The inputs of a resident classification `task` with several labels, by the name of their task; with one, `task`.

    The loss and the metric are means over the tasks; the metric of each is evaluated as well. Data are sliced by the
    first label.
    """
    if len(labels) < 2:
        return task
    subtasks = tuple(
        Subtask(name=name, outputs=len(each.names), loss=LOSSES[loss], metric=accuracy, class_names=each.names)
        for name, each in labels.items()
    )
    train, test = (
        TensorDataset(data[:][0], torch.stack([getattr(each, part) for each in labels.values()], 1))
        for part, data in (("train", task.data.train), ("test", task.data.test))
    )
    metrics = {f"{each.name}_{task.objective.metric_name}": _metric_of(subtasks, each.name) for each in subtasks}
    return replace(
        task,
        data=replace(
            task.data,
            train=train,
            test=test,
            labels=train.tensors[1][:, 0],
            sha256=fingerprint(train.tensors[1], test.tensors[1], also=f"{task.data.sha256} {list(labels)}"),
        ),
        objective=replace(
            task.objective,
            outputs=sum(each.outputs for each in subtasks),
            loss=loss_of(subtasks),
            metric=_mean_metric(subtasks),
            more_metrics=metrics,
            guess=None,
        ),
        presentation=replace(task.presentation, class_names=()),
        subtasks=subtasks,
    )


def loss_of(subtasks: Sequence[Subtask], trained: Sequence[str] | None = None) -> Criterion:
    """The mean over all tasks, of which only those `trained` are in the output and in the sum; None: all."""
    chosen = [(column, each) for column, each in enumerate(subtasks) if trained is None or each.name in trained]
    widths = [each.outputs for _, each in chosen]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        parts = zip(chosen, output.split(widths, 1), strict=True)
        losses = [each.loss(part, target[:, column]) for (column, each), part in parts]
        return torch.stack(losses).sum() / len(subtasks)

    return loss


def _metric_of(subtasks: Sequence[Subtask], name: str) -> Criterion:
    widths = [each.outputs for each in subtasks]
    column = [each.name for each in subtasks].index(name)

    def metric(output: Tensor, target: Tensor) -> Tensor:
        return subtasks[column].metric(output.split(widths, 1)[column], target[:, column])

    return metric


def _mean_metric(subtasks: Sequence[Subtask]) -> Criterion:
    metrics = [_metric_of(subtasks, each.name) for each in subtasks]

    def metric(output: Tensor, target: Tensor) -> Tensor:
        return torch.stack([each(output, target) for each in metrics]).mean(0)

    return metric
