"""Classification tasks: losses, accuracy, and the check of labels."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from ddp_agent.data.task import Criterion, Data, Objective, Presentation, Task
from ddp_agent.errors import DataError

LossName = Literal["cross_entropy", "half_squared_error"]


def classification(
    data: Data,
    *,
    outputs: int,
    loss: LossName,
    presentation: Presentation | None = None,
    model_arguments: Mapping[str, Any] | None = None,
) -> Task:
    """Return a task that is judged by accuracy, with `outputs` classes.

    Labels default to the targets of resident data. Raises DataError for labels outside 0 to `outputs` - 1.
    """
    if data.labels is None and isinstance(data.train, TensorDataset):
        data = replace(data, labels=data.train.tensors[1])
    if isinstance(data.test, TensorDataset):
        require_classes("test", data.test.tensors[1], outputs)
    if data.labels is not None:
        require_classes("train on", data.labels, outputs)
    return Task(
        data=data,
        objective=Objective(
            outputs=outputs,
            loss=LOSSES[loss],
            metric=accuracy,
            metric_name="accuracy",
            higher_is_better=True,
            guess=likeliest,
        ),
        presentation=presentation or Presentation(),
        model_arguments=model_arguments or {},
    )


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return the article's loss ½(y − ŷ)², summed over the outputs against one-hot targets, mean over the batch."""
    one_hot = F.one_hot(target, output.shape[1]).to(output.dtype)
    return F.mse_loss(output, one_hot, reduction="sum") / (2 * len(output))


def likeliest(output: Tensor) -> Tensor:
    """Return the class with the largest output of each sample."""
    return output.argmax(1)


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Return 1 for each sample whose largest output is the target, else 0."""
    return (likeliest(output) == target).float()


LOSSES: dict[LossName, Criterion] = {
    "cross_entropy": F.cross_entropy,
    "half_squared_error": half_squared_error,
}


def require_classes(purpose: str, labels: Tensor, outputs: int) -> None:
    """Raise DataError if any of `labels` [samples] is outside 0 to `outputs` - 1."""
    if not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs:
        raise DataError(
            f"labels to {purpose}: found {low} to {high}, expected 0 to {outputs - 1}: {outputs} classes, from 0"
        )
