"""A user's own images, streamed from disk by DataLoader workers."""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddp_agent.config.fields import Range
from ddp_agent.data.augment import crop_and_flip
from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.readers.folders import Sample, Walk, contents, shown
from ddp_agent.data.readers.images import SUFFIXES, read_picture, square
from ddp_agent.data.source import Source, check_dataset
from ddp_agent.data.task import Data, DataRoot, Presentation, Task
from ddp_agent.errors import DataError

SPLITS = ("train", "test")
LAYOUT = "data_root/train/<class>/*.png or jpg and data_root/test/<class>/*.png or jpg, with the same classes"
# ImageNet's values, by convention. Any fixed numbers that bring pixels near mean 0 and variance 1 would do.
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@dataclass(kw_only=True)
class ImageFolder:
    """Your own images: data_root/{train,test}/<class>/*.png or jpg, resized and streamed by workers."""

    data_root: DataRoot
    image_size: Annotated[int, Range(1, 4096)]
    """Pixels per side to which the middle square of a picture is scaled."""
    augment: bool
    """Random crops and mirror images, in training only."""
    workers: Annotated[int, Range(0, 256)]
    loss: LossName

    source: ClassVar = Source(
        content="pictures of yours",
        size="any size",
        licence="your own",
        url="two or more classes",
        layout=LAYOUT,
        downloads=False,
    )

    def __post_init__(self) -> None:
        check_dataset(self)

    def load(self) -> Task:
        """Return the task.

        Raises DataError for a missing split or class. An unreadable image raises one when it is read.
        """
        train, test = (_Split.walk(self.data_root / split) for split in SPLITS)
        names = _classes(self.data_root, train, test)
        pictures = [_Pictures(split.labelled(names), self.image_size) for split in (train, test)]
        data = Data(
            train=pictures[0],
            test=pictures[1],
            input_shape=(3, self.image_size, self.image_size),
            augment=functools.partial(crop_and_flip, padding=self.image_size // 8) if self.augment else None,
            labels=torch.tensor([label for _, label in pictures[0].samples]),
            workers=self.workers,
            sha256=_fingerprint(self.data_root, [*train.files(), *test.files()], self.image_size),
            remarks=tuple(_remarks(train, test)),
        )
        shown_as = Presentation(class_names=tuple(names))
        return classification(data, outputs=len(names), loss=self.loss, presentation=shown_as)


class _Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures float32 [3, size, size], normalised, and their classes."""

    def __init__(self, samples: Sequence[tuple[Path, int]], size: int) -> None:
        self.samples, self.size = samples, size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return (square(read_picture(path, shown(str(path))), self.size) - MEAN) / STD, label


@dataclass(frozen=True)
class _Split:
    """The samples of one split by class, as the walk found them."""

    folder: Path
    walked: Walk
    samples: dict[str, list[Sample]]

    @classmethod
    def walk(cls, folder: Path) -> "_Split":
        if not folder.is_dir():
            found = contents(folder.parent)
            raise DataError(f"{folder}: found no such folder ({found} in {folder.parent}), expected {LAYOUT}")
        walk = Walk(SUFFIXES)
        return cls(folder, walk, {name: walk.samples(path) for name, path in walk.classes(folder).items()})

    def labelled(self, names: Sequence[str]) -> list[tuple[Path, int]]:
        return [(sample.path, label) for label, name in enumerate(names) for sample in self.samples[name]]

    def files(self) -> Iterator[Sample]:
        return (sample for samples in self.samples.values() for sample in samples)


def _classes(root: Path, train: _Split, test: _Split) -> list[str]:
    """Return the names of the classes. Raise DataError if the splits differ in them, or a class has no pictures."""
    for split, other in ((train, test), (test, train)):
        extra = sorted(split.samples.keys() - other.samples.keys())
        if extra:
            raise DataError(
                f"{other.folder}: expected the classes of {split.folder.name}/, found no folder for {', '.join(extra)}"
            )
    if len(train.samples) < 2:
        raise DataError(f"{train.folder}: found {len(train.samples)} class folders, expected 2 or more")
    for split in (train, test):
        if empty := [name for name, samples in split.samples.items() if not samples]:
            raise DataError(
                f"{split.folder}: expected images in every class folder, found none in {', '.join(empty)}; "
                f"{'; '.join(split.walked.remarks()) or 'remove these folders from both splits'}"
            )
    return list(train.samples)


def _remarks(train: _Split, test: _Split) -> Iterator[str]:
    for split in (train, test):
        yield from (f"{shown(str(split.folder))}: {remark}" for remark in split.walked.remarks())
    if shared := train.walked.shared_with(test.walked):
        yield f"{shared:,} pictures are links to one file in train/ and in test/: they are trained on and tested"


def _fingerprint(root: Path, samples: Sequence[Sample], image_size: int) -> str:
    """Return the hash of names, which contain the class, and sizes: reading every image at start could take hours."""
    digest = hashlib.sha256(str(image_size).encode())
    for sample in samples:
        digest.update(os.fsencode(sample.path.relative_to(root)) + f" {sample.size}\n".encode())
    return digest.hexdigest()
