"""What a dataset hands to a run, and what all classification datasets share."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ddp_agent.errors import DataError

Criterion = Callable[[Tensor, Tensor], Tensor]
Transform = Callable[[Tensor], Tensor]
LossName = Literal["cross_entropy", "half_squared_error"]
Look = Literal["image", "spectrogram"]
Samples = tuple[Tensor, Tensor]
"""Inputs [samples, ...] and labels [samples] (int64, from 0)."""


@dataclass(frozen=True, kw_only=True)
class Subtask:
    """One of several tasks on the same inputs; see `datasets.tasks`."""

    name: str
    outputs: int
    loss: Criterion
    metric: Criterion
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """Data, loss and metric of a run. A TensorDataset is kept on the device, anything else is streamed."""

    train: Dataset[Any]
    test: Dataset[Any]
    input_shape: tuple[int, ...]
    """Of one sample, as the model gets it."""
    outputs: int
    loss: Criterion
    """(output, target) -> scalar, the mean over the batch."""
    train_loss: Criterion | None = None
    """What training minimises, where it is not `loss`."""
    metric: Criterion
    """(output, target) -> one float a sample."""
    metric_name: str
    higher_is_better: bool
    finish: Callable[[float], float] | None = None
    """Makes the metric of the mean over the samples, where it is more than that mean: a square root, say."""
    more_metrics: Mapping[str, Criterion] = field(default_factory=dict)
    """By name, like `metric`: also evaluated and logged."""
    subtasks: tuple[Subtask, ...] = ()
    """Where there are several: outputs and columns of the target are theirs, side by side in this order."""
    transform: Transform | None = None
    """Applied to the inputs of every batch, on their device, in training and in evaluation."""
    augment: Transform | None = None
    """Applied after `transform` to a training micro-batch, on its device, with torch's global generator."""
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    """What a model may ask for beside `input_shape` and `outputs`, by the names of `config.RUNTIME`."""
    labels: Tensor | None = None
    """Class of each training sample, int64 [samples], from 0."""
    groups: Tensor | None = None
    """Speaker or user of each training sample, int64 [samples], from 0."""
    class_names: tuple[str, ...] = ()
    """One a class, in the order of the outputs; empty when they have none."""
    guess: Callable[[Tensor], Tensor] | None = None
    """(output [samples, classes]) -> class of each sample; None for data without classes."""
    look: Look = "image"
    """How inputs are drawn, as the model gets them: a spectrogram is [..., frequencies, frames]."""
    test_texts: Sequence[str] = ()
    """What each test sample says, for people, where inputs are texts in numbers."""
    sample: Callable[[nn.Module], str] | None = None
    """What a trained model makes, as text for people."""
    workers: int = 0
    """DataLoader workers, for data that is streamed."""
    sha256: str
    """Of what is trained and tested on: two runs with the same one saw the same data."""


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """The article's loss ½(y − ŷ)², summed over the outputs against one-hot targets, mean over the batch."""
    one_hot = F.one_hot(target, output.shape[1]).to(output.dtype)
    return F.mse_loss(output, one_hot, reduction="sum") / (2 * len(output))


def likeliest(output: Tensor) -> Tensor:
    """The class with the largest output of each sample."""
    return output.argmax(1)


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """1 where the largest output is the target, else 0."""
    return (likeliest(output) == target).float()


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
    labels: Tensor,
    groups: Tensor | None = None,
    class_names: tuple[str, ...] = (),
    transform: Transform | None = None,
    augment: Transform | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    look: Look = "image",
    test_texts: Sequence[str] = (),
    workers: int = 0,
) -> Task:
    """A Task judged by accuracy. Raises DataError for labels that are no classes from 0 to `outputs` - 1."""
    require_classes("train on", labels, outputs)
    return Task(
        train=train,
        test=test,
        input_shape=input_shape,
        outputs=outputs,
        loss=LOSSES[loss],
        metric=accuracy,
        metric_name="accuracy",
        higher_is_better=True,
        labels=labels,
        groups=groups,
        class_names=class_names,
        guess=likeliest,
        look=look,
        test_texts=test_texts,
        transform=transform,
        augment=augment,
        model_arguments=model_arguments or {},
        workers=workers,
        sha256=sha256,
    )


def resident_classification(
    train: Samples,
    test: Samples,
    *,
    outputs: int,
    loss: LossName,
    groups: Tensor | None = None,
    class_names: tuple[str, ...] = (),
    transform: Transform | None = None,
    augment: Transform | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    look: Look = "image",
    test_texts: Sequence[str] = (),
) -> Task:
    """A classification Task of tensors that fit on the device.

    The representation of `transform` is a part of the fingerprint, and must be the same on every rank.
    """
    first = train[0][:1]
    require_classes("test", test[1], outputs)
    return classification(
        TensorDataset(*train),
        TensorDataset(*test),
        input_shape=tuple((transform(first) if transform else first).shape[1:]),
        outputs=outputs,
        loss=loss,
        sha256=fingerprint(*train, *test, also=repr(transform) if transform else ""),
        labels=train[1],
        groups=groups,
        class_names=class_names,
        transform=transform,
        augment=augment,
        model_arguments=model_arguments,
        look=look,
        test_texts=test_texts,
    )


def require_classes(purpose: str, labels: Tensor, outputs: int) -> None:
    """Raises DataError for labels [samples] beyond 0 to `outputs` - 1."""
    if not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs:
        raise DataError(
            f"labels to {purpose}: found {low} to {high}, expected 0 to {outputs - 1}: {outputs} classes, from 0"
        )


def fingerprint(*tensors: Tensor, also: str = "") -> str:
    """sha256 over types, shapes and bytes; about 1 s a gigabyte, hence once a run."""
    digest = hashlib.sha256(also.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def normalise(pixels: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Bytes as floats of about mean 0 and variance 1; `mean` and `std` are of pixels scaled to 0..1."""
    return pixels.to(torch.float32).div_(255 * std).sub_(mean / std)
