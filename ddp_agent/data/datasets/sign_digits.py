"""The Sign Language Digits Dataset (Mavi 2020, arXiv:2011.08927)."""

import functools
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from ddp_agent.data.augment import crop_and_flip
from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.datasets.digits import stratified_split
from ddp_agent.data.readers.download import Published, located
from ddp_agent.data.readers.images import normalise, read_rgb
from ddp_agent.data.readers.packed import find, read_npz, require_labels, require_rows
from ddp_agent.data.readers.zip_members import content_sha256, members
from ddp_agent.data.source import Source, check_dataset
from ddp_agent.data.task import Data, DataRoot, Presentation, Task
from ddp_agent.errors import DataError

CLASSES = 10
SIZE = 32
BETWEEN = 64  # pixels: shrunk in two steps, as the packed pictures were
PADDING = 4
# Statistics of all pixels of each channel, scaled to 0..1.
MEAN = torch.tensor([0.6748, 0.6458, 0.6163]).view(3, 1, 1)
STD = torch.tensor([0.1370, 0.1544, 0.1827]).view(3, 1, 1)
SPLIT_SEED = 2020  # never the run's: every run is tested on the same pictures
TEST_SHARE = 0.2
NAME = "sign_language_digits_32"
PACKED = "signdigits32.npz"
FOLDER = "Dataset"
COMMIT = "4b09433ef9d5c60602e8805bb54b8aa2428527f8"
PHOTOS = Published(
    "sign_language_digits.zip",
    f"https://codeload.github.com/ardamavi/Sign-Language-Digits-Dataset/zip/{COMMIT}",
    "2ea3d342bd6b9b6aac720c185be004c3fcb4e513cd376d31f00b8a054b5f154d",
    functools.partial(content_sha256, folder=FOLDER),
)


@dataclass(frozen=True)
class _Pictures:
    """The shrunk photos: `pixels` uint8 [n, 32, 32, 3] and `digits` int64 [n], in the order of the photos' names."""

    pixels: Tensor
    digits: Tensor


@dataclass(kw_only=True)
class SignDigits:
    """2,062 colour photos of hands that show a digit, 32 x 32 pixels; a random fifth of each digit is tested."""

    data_root: DataRoot
    download: bool
    augment: bool
    """Random crops and mirror images, in training only."""
    loss: LossName

    source: ClassVar = Source(
        content="2,062 colour photos of hands that show a digit (Sign Language Digits)",
        size="2,062 small files",
        licence="Apache-2.0",
        url=PHOTOS.url,
        layout=f"{NAME}/{PHOTOS.name} below data_root",
    )

    def __post_init__(self) -> None:
        check_dataset(self)

    def load(self) -> Task:
        """Return the task. The data have no official split and no names, so hands of one person are in both parts.

        Raises DataError for files that are missing, damaged or of another kind.
        """
        pictures = self._read()
        inputs = normalise(pictures.pixels.permute(0, 3, 1, 2).contiguous(), MEAN, STD)
        train, test = stratified_split(pictures.digits, TEST_SHARE, SPLIT_SEED)
        data = Data.resident(
            (inputs[train], pictures.digits[train]),
            (inputs[test], pictures.digits[test]),
            augment=functools.partial(crop_and_flip, padding=PADDING) if self.augment else None,
        )
        names = Presentation(class_names=tuple("0123456789"))
        return classification(data, outputs=CLASSES, loss=self.loss, presentation=names)

    def _read(self) -> _Pictures:
        if packed := find(self.data_root, NAME, PACKED):
            return read_packed(packed)
        return read_photos(
            located(self.data_root, NAME, [PHOTOS], download=self.download, missing=self.source.missing) / PHOTOS.name
        )


def read_packed(path: Path) -> _Pictures:
    """Return the pictures that somebody shrunk and packed into an .npz file."""
    arrays = read_npz(path, {"image": (numpy.uint8, 4), "label": (numpy.uint8, 1), "path": (numpy.str_, 1)})
    if arrays["image"].shape[1:] != (SIZE, SIZE, 3):
        raise DataError(f"{path}: image: found {arrays['image'].shape}, expected pictures of ({SIZE}, {SIZE}, 3)")
    require_rows(path, arrays, "image", "label", "path")
    require_labels(path, "label", arrays["label"], CLASSES)
    order = arrays["path"].argsort()
    return _Pictures(torch.from_numpy(arrays["image"][order]), torch.from_numpy(arrays["label"][order]).long())


def read_photos(path: Path) -> _Pictures:
    """Return the photos `Dataset/<digit>/<name>.JPG` of a zip file."""
    pixels, digits = [], []
    for name, data in members(path, FOLDER):
        digit = PurePosixPath(name).parts[0]
        if digit not in tuple("0123456789"):
            raise DataError(f"{path}: found {FOLDER}/{name}, expected {FOLDER}/<digit>/*.JPG")
        pixels.append(_shrunk(data, f"{path}: {name}"))
        digits.append(int(digit))
    if not digits:
        raise DataError(f"{path}: found no {FOLDER}/<digit>/*.JPG, expected the photos of {PHOTOS.url}")
    if absent := sorted(set(range(CLASSES)) - set(digits)):
        raise DataError(f"{path}: {FOLDER}: found no photo of {absent[0]}, expected some of each of 0 to {CLASSES - 1}")
    return _Pictures(torch.from_numpy(numpy.stack(pixels)), torch.tensor(digits))


def _shrunk(data: bytes, name: str) -> "numpy.ndarray[Any, Any]":
    from PIL import Image

    photo = read_rgb(io.BytesIO(data), name)
    for size in (BETWEEN, SIZE):
        photo = photo.resize((size, size), Image.Resampling.LANCZOS)
    return numpy.asarray(photo)
