"""Several classification tasks on the same inputs: one label per sample and task, outputs side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ddp_agent.data.classification import LOSSES, LossName, accuracy
from ddp_agent.data.task import Criterion, Subtask, Task, fingerprint


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of one task: classes of the training and test samples, int64 [samples], from 0, and their names."""

    train: Tensor
    test: Tensor
    names: tuple[str, ...]


def check_tasks(tasks: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError if `tasks` is empty or names a task twice."""
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks: found [{', '.join(tasks)}], expected one or more of {', '.join(known)}, each once")


def multi_task(task: Task, labels: Mapping[str, Labels], loss: LossName) -> Task:
    """Return a task with the inputs of a resident classification `task` and several `labels`, by task name.

    Loss and metric are means over the tasks. The metric of each task is evaluated as well. Data are sliced by the
    labels of the first task. With labels of one task, `task` itself is returned.
    """
    if len(labels) < 2:
        return task
    subtasks = tuple(
        Subtask(name=name, outputs=len(of_task.names), loss=LOSSES[loss], metric=accuracy, class_names=of_task.names)
        for name, of_task in labels.items()
    )
    train, test = (
        TensorDataset(data[:][0], torch.stack([getattr(of_task, part) for of_task in labels.values()], 1))
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
    """Return the mean of the tasks' losses.

    With `trained`, only these tasks are in the output and in the sum, which is still divided by the number of all
    tasks.
    """
    chosen = [
        (column, subtask) for column, subtask in enumerate(subtasks) if trained is None or subtask.name in trained
    ]
    widths = [subtask.outputs for _, subtask in chosen]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        parts = zip(chosen, output.split(widths, 1), strict=True)
        losses = [subtask.loss(part, target[:, column]) for (column, subtask), part in parts]
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
