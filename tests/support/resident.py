"""Properties of data kept on the device that the rest of the harness relies on."""

import torch
from torch import Tensor

from ddp_agent.data.task import Task


def check(task: Task, *, input_shape: tuple[int, ...], outputs: int, train: int, test: int) -> None:
    assert (
        task.data.input_shape,
        task.objective.outputs,
        task.objective.metric_name,
        task.objective.higher_is_better,
    ) == (
        input_shape,
        outputs,
        "accuracy",
        True,
    )
    for part, samples in ((task.data.train, train), (task.data.test, test)):
        inputs, targets = part.tensors  # type: ignore[attr-defined]
        assert inputs.shape == (samples, *input_shape) and inputs.dtype == torch.float32
        assert targets.shape == (samples,) and targets.dtype == torch.int64
        assert targets.min() >= 0 and targets.max() < outputs
        assert inputs.mean().abs() < 1 and 0.3 < inputs.std() < 3
    assert task.data.labels is not None and torch.equal(task.data.labels, task.data.train.tensors[1])  # type: ignore[attr-defined]
    assert len(task.presentation.class_names) in (0, outputs)
    assert len(task.data.sha256) == 64


def tensors(task: Task) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and targets to train on, then those to test on."""
    return (*task.data.train.tensors, *task.data.test.tensors)  # type: ignore[attr-defined]
