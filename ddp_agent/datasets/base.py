"""What a dataset hands to a run, and what all classification datasets share."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

Criterion = Callable[[Tensor, Tensor], Tensor]
LossName = Literal["cross_entropy", "half_squared_error"]
Samples = tuple[Tensor, Tensor]
"""Inputs [samples, ...] and labels [samples] (int64, from 0)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Data, loss and metric of a run. A TensorDataset is kept on the device, anything else is streamed."""

    train: Dataset[Any]
    test: Dataset[Any]
    input_shape: tuple[int, ...]
    outputs: int
    loss: Criterion
    """(output, target) -> scalar, the mean over the batch."""
    metric: Criterion
    """(output, target) -> one float a sample."""
    metric_name: str
    higher_is_better: bool
    augment: Callable[[Tensor], Tensor] | None = None
    """Applied to the inputs of a training micro-batch, on their device, with torch's global generator."""
    workers: int = 0
    """DataLoader workers, for data that is streamed."""
    sha256: str
    """Of what is trained and tested on: two runs with the same one saw the same data."""


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """The article's loss ½(y − ŷ)², summed over the outputs against one-hot targets, mean over the batch."""
    one_hot = F.one_hot(target, output.shape[1]).to(output.dtype)
    return F.mse_loss(output, one_hot, reduction="sum") / (2 * len(output))


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """1 where the largest output is the target, else 0."""
    return (output.argmax(1) == target).float()


LOSSES: dict[LossName, Criterion] = {
    "cross_entropy": F.cross_entropy,
    "half_squared_error": half_squared_error,
}


def classification(
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    input_shape: tuple[int, ...],
    outputs: int,
    loss: LossName,
    sha256: str,
    augment: Callable[[Tensor], Tensor] | None = None,
    workers: int = 0,
) -> Task:
    """A Task judged by accuracy."""
    return Task(
        train=train,
        test=test,
        input_shape=input_shape,
        outputs=outputs,
        loss=LOSSES[loss],
        metric=accuracy,
        metric_name="accuracy",
        higher_is_better=True,
        augment=augment,
        workers=workers,
        sha256=sha256,
    )


def resident_classification(
    train: Samples,
    test: Samples,
    *,
    outputs: int,
    loss: LossName,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> Task:
    """A classification Task of tensors that fit on the device."""
    return classification(
        TensorDataset(*train),
        TensorDataset(*test),
        input_shape=tuple(train[0].shape[1:]),
        outputs=outputs,
        loss=loss,
        sha256=fingerprint(*train, *test),
        augment=augment,
    )


def fingerprint(*tensors: Tensor) -> str:
    """sha256 over types, shapes and bytes; about 1 s a gigabyte, hence once a run."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def normalise(pixels: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Bytes as floats of about mean 0 and variance 1; `mean` and `std` are of pixels scaled to 0..1."""
    return pixels.to(torch.float32).div_(255 * std).sub_(mean / std)
