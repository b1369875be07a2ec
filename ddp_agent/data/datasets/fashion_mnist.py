"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.readers.download import Published, in_turn
from ddp_agent.data.readers.idx import read_idx
from ddp_agent.data.readers.images import normalise
from ddp_agent.data.source import Source, check_dataset
from ddp_agent.data.task import Data, DataRoot, Presentation, Samples, Task
from ddp_agent.errors import DataError

CLASS_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CLASSES = len(CLASS_NAMES)
SIZE = (28, 28)
MEAN, STD = 0.2860, 0.3530  # of the training pixels, scaled to 0..1
_SOURCE = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data"
)
PUBLISHED = tuple(
    Published(f"{name}-ubyte.gz", f"{_SOURCE}/fashion/{name}-ubyte.gz", sha256)
    for name, sha256 in {
        "train-images-idx3": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    }.items()
)
TORCHVISION_FOLDER = "FashionMNIST/raw"
DEBIAN_FOLDER = "fashion-mnist"


@dataclass(kw_only=True)
class FashionMNIST:
    """Fashion-MNIST: 70,000 grey images of 28 x 28 pixels, of clothing in ten classes, from IDX files."""

    data_root: DataRoot
    download: bool
    loss: LossName

    source: ClassVar = Source(
        content="Fashion-MNIST, 70,000 grey pictures of clothing in ten classes",
        size="31 MB",
        licence="MIT",
        url="https://github.com/zalandoresearch/fashion-mnist (Debian: dataset-fashion-mnist)",
        layout=f"four IDX files, gzipped or not, in data_root, {TORCHVISION_FOLDER}/ or {DEBIAN_FOLDER}/ below it",
    )

    def __post_init__(self) -> None:
        check_dataset(self)

    def load(self) -> Task:
        """Return the task. Raises DataError for files that are missing, damaged or of another kind."""
        if self.download and self._folder(all) is None:
            self._download()
        folder = self._folder(all) or self._folder(any)  # the second names the absent file
        if folder is None:
            raise self.source.missing(
                self.data_root, f"{_name('train', 'images')}[.gz], also not in {TORCHVISION_FOLDER} or {DEBIAN_FOLDER}"
            )
        return classification(
            Data.resident(_read(folder, "train"), _read(folder, "t10k")),
            outputs=CLASSES,
            loss=self.loss,
            presentation=Presentation(class_names=CLASS_NAMES),
        )

    def _folder(self, enough: Callable[[Iterable[bool]], bool]) -> Path | None:
        """Return the first folder that holds `all` or `any` of the four files."""
        names = [_name(part, kind) for part in ("train", "t10k") for kind in ("images", "labels")]
        folders = [self.data_root / folder for folder in ("", TORCHVISION_FOLDER, DEBIAN_FOLDER)]
        return next((folder for folder in folders if enough(_find(folder, name) is not None for name in names)), None)

    def _download(self) -> None:
        """Download the absent files. A file appears under its name once it is whole: another rank may look any time."""
        target = self.data_root / TORCHVISION_FOLDER
        with in_turn(self.data_root, "fashion_mnist"):
            target.mkdir(parents=True, exist_ok=True)
            for file in PUBLISHED:
                if _find(target, file.name.removesuffix(".gz")) is None:
                    file.download(target)


def _name(part: str, kind: str) -> str:
    return f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _path(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise DataError(f"{folder / name}[.gz]: found no such file, expected it beside the others")
    return path


def _read(folder: Path, part: str) -> Samples:
    images_path, labels_path = _path(folder, _name(part, "images")), _path(folder, _name(part, "labels"))
    images, labels = read_idx(images_path, "images"), read_idx(labels_path, "labels")
    if images.shape[1:] != SIZE:
        raise DataError(f"{images_path}: found images of {tuple(images.shape[1:])} pixels, expected {SIZE}")
    if len(labels) != len(images):
        raise DataError(f"{labels_path}: found {len(labels):,} labels, expected {len(images):,}, one per image")
    if labels.max() >= CLASSES:
        raise DataError(f"{labels_path}: found label {labels.max()}, expected 0 to {CLASSES - 1}")
    return normalise(images, MEAN, STD).unsqueeze(1), labels.long()
