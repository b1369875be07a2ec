"""What the rest of the harness relies on, for data that are kept on the device."""

import torch

from ddp_agent.data.datasets.base import Task


def check(task: Task, *, input_shape: tuple[int, ...], outputs: int, train: int, test: int) -> None:
    assert (task.input_shape, task.outputs, task.metric_name, task.higher_is_better) == (
        input_shape,
        outputs,
        "accuracy",
        True,
    )
    for part, samples in ((task.train, train), (task.test, test)):
        inputs, targets = part.tensors  # type: ignore[attr-defined]
        assert inputs.shape == (samples, *input_shape) and inputs.dtype == torch.float32
        assert targets.shape == (samples,) and targets.dtype == torch.int64
        assert targets.min() >= 0 and targets.max() < outputs
        assert inputs.mean().abs() < 1 and 0.3 < inputs.std() < 3
    assert task.labels is not None and torch.equal(task.labels, task.train.tensors[1])  # type: ignore[attr-defined]
    assert len(task.class_names) in (0, outputs)
    assert len(task.sha256) == 64
