"""The contract between a dataset and a run: data, objective and presentation."""

import hashlib
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ddp_agent.config.fields import Hint

DataRoot = Annotated[Path, Hint("(set data_root=<folder>)")]
"""The folder of data files, which a dataset's constructor takes as `data_root`."""
Criterion = Callable[[Tensor, Tensor], Tensor]
Transform = Callable[[Tensor], Tensor]
Look = Literal["image", "spectrogram"]
Samples = tuple[Tensor, Tensor]
"""Inputs [samples, ...] and targets [samples, ...]."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Training and test samples. A TensorDataset is kept on the device, any other dataset is streamed."""

    train: Dataset[Any]
    test: Dataset[Any]
    input_shape: tuple[int, ...]
    """Shape of one sample, as the model gets it."""
    transform: Transform | None = None
    """Applied to the inputs of every batch, on their device, in training and in evaluation."""
    augment: Transform | None = None
    """Applied after `transform` to a training micro-batch, on its device, with torch's global generator."""
    labels: Tensor | None = None
    """Class of each training sample, int64 [samples], from 0."""
    groups: Tensor | None = None
    """Speaker or user of each training sample, int64 [samples], from 0."""
    workers: int = 0
    """DataLoader workers per rank, for data that is streamed."""
    sha256: str
    """Hash of the samples: two runs with equal hashes saw the same data."""
    remarks: tuple[str, ...] = ()
    """Sentences for the log on files that were passed over."""

    @classmethod
    def resident(
        cls,
        train: Samples,
        test: Samples,
        *,
        transform: Transform | None = None,
        augment: Transform | None = None,
        groups: Tensor | None = None,
        sha256: str | None = None,
    ) -> Self:
        """Return the data of tensors that fit on the device.

        `sha256` defaults to the hash of all four tensors and of the representation of `transform`, which must
        therefore be the same on every rank.
        """
        first = train[0][:1]
        return cls(
            train=TensorDataset(*train),
            test=TensorDataset(*test),
            input_shape=tuple((transform(first) if transform else first).shape[1:]),
            transform=transform,
            augment=augment,
            groups=groups,
            sha256=sha256 or fingerprint(*train, *test, also=repr(transform) if transform else ""),
        )

    @property
    def train_count(self) -> int:
        """The number of training samples."""
        return len(cast(Sized, self.train))

    @property
    def test_count(self) -> int:
        """The number of test samples."""
        return len(cast(Sized, self.test))

    def transformed(self, inputs: Tensor) -> Tensor:
        """Return the inputs of a batch as the model gets them, before augmentation."""
        return inputs if self.transform is None else self.transform(inputs)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The function that training minimises, and the metric that judges the model."""

    outputs: int
    """Numbers per sample that the model returns."""
    loss: Criterion
    """(output, target) -> scalar, the mean over the batch."""
    train_loss: Criterion | None = None
    """The loss that training minimises, where it is not `loss`."""
    metric: Criterion
    """(output, target) -> one float per sample."""
    metric_name: str
    higher_is_better: bool
    finish: Callable[[float], float] | None = None
    """Applied to the mean of `metric` over the test samples, such as a square root. None: the mean is the result."""
    more_metrics: Mapping[str, Criterion] = field(default_factory=dict)
    """Further metrics by name, evaluated and logged like `metric`."""
    guess: Callable[[Tensor], Tensor] | None = None
    """(output [samples, classes]) -> predicted class of each sample; None for data without classes."""


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """Names, texts and pictures by which people see samples and predictions."""

    class_names: tuple[str, ...] = ()
    """One name per class, in the order of the outputs; empty where classes have no names."""
    look: Look = "image"
    """The way to draw inputs as the model gets them. A spectrogram is [..., frequencies, frames]."""
    test_texts: Sequence[str] = ()
    """The text of each test sample, where inputs are encoded texts."""
    sample: Callable[[nn.Module], str] | None = None
    """Returns a text that a trained model writes."""


@dataclass(frozen=True, kw_only=True)
class Subtask:
    """One of several tasks on the same inputs."""

    name: str
    outputs: int
    loss: Criterion
    metric: Criterion
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that a dataset gives to a run."""

    data: Data
    objective: Objective
    presentation: Presentation = Presentation()
    subtasks: tuple[Subtask, ...] = ()
    """Several tasks on the same inputs. Their outputs and target columns stand side by side in this order."""
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Values that a model's constructor may ask for beside `input_shape` and `outputs`."""


def fingerprint(*tensors: Tensor, also: str = "") -> str:
    """Return the sha256 of types, shapes, bytes and `also`. It costs about 1 s per gigabyte."""
    digest = hashlib.sha256(also.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
