"""A user's own images, streamed from disk by DataLoader workers."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from ddp_agent.config.fields import Range, check_fields
from ddp_agent.data.augment import crop_and_flip
from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.readers.images import read_rgb
from ddp_agent.data.task import Data, DataRoot, Presentation, Task
from ddp_agent.errors import DataError

SPLITS = ("train", "test")
# ImageNet's values, by convention. Any fixed numbers that bring pixels near mean 0 and variance 1 would do.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(kw_only=True)
class ImageFolder:
    """Your own images: data_root/{train,test}/<class>/*.png or jpg, resized and streamed by workers."""

    data_root: DataRoot
    image_size: Annotated[int, Range(1, 4096)]
    """Pixels of the shorter side after resizing, and of the square that is cut from the middle."""
    augment: bool
    """Random crops and mirror images, in training only."""
    workers: Annotated[int, Range(0, 256)]
    loss: LossName

    def __post_init__(self) -> None:
        check_fields(self)

    def load(self) -> Task:
        """Return the task.

        Raises DataError for a missing split or class. An unreadable image raises one when it is read.
        """
        classes = _classes(self.data_root)
        train, test = (self._open(split) for split in SPLITS)
        data = Data(
            train=train,
            test=test,
            input_shape=(3, self.image_size, self.image_size),
            augment=functools.partial(crop_and_flip, padding=self.image_size // 8) if self.augment else None,
            labels=torch.tensor(train.targets),
            workers=self.workers,
            sha256=_fingerprint(self.data_root, [*train.samples, *test.samples], self.image_size),
        )
        names = Presentation(class_names=tuple(classes))
        return classification(data, outputs=len(classes), loss=self.loss, presentation=names)

    def _open(self, split: str) -> Any:
        from torchvision.datasets import ImageFolder as Files
        from torchvision.transforms import v2

        transform = v2.Compose(
            [
                v2.Resize(self.image_size, antialias=True),
                v2.CenterCrop(self.image_size),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )
        try:
            return Files(str(self.data_root / split), transform=transform, loader=_read_image)
        except FileNotFoundError as error:
            raise DataError(f"{self.data_root / split}: expected images in every class folder. {error}") from error


def _classes(root: Path) -> list[str]:
    """Return the names of the class folders. Raise DataError if the splits differ in them."""
    found = {split: _folders(root / split) for split in SPLITS}
    for split, other in (SPLITS, SPLITS[::-1]):
        extra = sorted(found[split] - found[other])
        if extra:
            raise DataError(f"{root / other}: expected the classes of {split}/, found no folder for {', '.join(extra)}")
    if len(found["train"]) < 2:
        raise DataError(f"{root / 'train'}: found {len(found['train'])} class folders, expected 2 or more")
    return sorted(found["train"])


def _folders(split: Path) -> set[str]:
    if not split.is_dir():
        raise DataError(f"{split}: found no such folder, expected {split}/<class>/*.png or jpg")
    return {entry.name for entry in split.iterdir() if entry.is_dir()}


def _read_image(path: str) -> Any:
    return read_rgb(Path(path), path)


def _fingerprint(root: Path, samples: list[tuple[str, int]], image_size: int) -> str:
    """Return the hash of names, which contain the class, and sizes: reading every image at start could take hours."""
    digest = hashlib.sha256(str(image_size).encode())
    for name, _ in samples:
        path = Path(name)
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
