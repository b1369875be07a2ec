"""CIFAR-10 (Krizhevsky 2009)."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ddp_agent.data.augment import crop_and_flip
from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.readers.archive import unpack
from ddp_agent.data.readers.download import Published, in_turn
from ddp_agent.data.readers.images import normalise
from ddp_agent.data.source import Source, check_dataset
from ddp_agent.data.task import Data, DataRoot, Presentation, Samples, Task
from ddp_agent.errors import DataError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = Published(
    "cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
UNPACKED_BYTES = 200_000_000  # 186 MB
PADDING = 4  # as in He et al. 2016, section 4.2
# Of the training pixels of each channel, scaled to 0..1.
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)


@dataclass(kw_only=True)
class CIFAR10:
    """CIFAR-10: 60,000 colour images of 32 x 32 pixels in ten classes, read by torchvision."""

    data_root: DataRoot
    download: bool
    augment: bool
    """Random crops and mirror images, in training only."""
    loss: LossName

    source: ClassVar = Source(
        content="CIFAR-10, 60,000 colour pictures in ten classes",
        size="170 MB",
        licence="no licence stated",
        url=ARCHIVE.url,
        layout="cifar-10-batches-py/ below data_root, as the archive has it",
    )

    def __post_init__(self) -> None:
        check_dataset(self)

    def load(self) -> Task:
        """Return the task. Raises DataError for files that are missing or whose checksum is not the published one."""
        augment = functools.partial(crop_and_flip, padding=PADDING) if self.augment else None
        return classification(
            Data.resident(self._read(train=True), self._read(train=False), augment=augment),
            outputs=len(CLASS_NAMES),
            loss=self.loss,
            presentation=Presentation(class_names=CLASS_NAMES),
        )

    def _read(self, train: bool) -> Samples:
        data = self._open(train)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return normalise(images, MEAN, STD), torch.tensor(data.targets)

    def _open(self, train: bool) -> Any:
        """Return the files. torchvision compares checksums before it unpickles, so no foreign pickle is ever loaded."""
        from torchvision.datasets import CIFAR10 as Files

        try:
            return Files(self.data_root, train=train)
        except (RuntimeError, OSError) as error:
            if not self.download:
                folder = self.data_root / Files.base_folder
                if not folder.is_dir():
                    raise self.source.missing(self.data_root, f"folder {folder.name}") from error
                found = "files that are missing or differ from the published ones"
                raise DataError(f"{folder}: found {found}. {self.source}") from error
        with in_turn(self.data_root, "cifar10"):
            try:
                return Files(self.data_root, train=train)  # another rank may have downloaded them by now
            except (RuntimeError, OSError):
                ARCHIVE.download(self.data_root)
                unpack(self.data_root / ARCHIVE.name, self.data_root, most_bytes=UNPACKED_BYTES)
                return Files(self.data_root, train=train)
