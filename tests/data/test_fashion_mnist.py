"""Fashion-MNIST: its files in several places, errors for bad ones, and downloads."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from idx_files import idx, pixels
from resident import check
from torch import Tensor

from ddp_agent.data.datasets.fashion_mnist import FashionMNIST
from ddp_agent.data.readers.download import Published
from ddp_agent.errors import DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NAMES = {
    (part, kind): f"{part}-{kind}-idx{dimensions}-ubyte"
    for part in ("train", "t10k")
    for kind, dimensions in (("images", 3), ("labels", 1))
}


def write_fashion(
    folder: Path, suffix: str = ".gz", instead: Mapping[str, Tensor | None] = MappingProxyType({})
) -> Path:
    """Twenty and ten tiny samples in the files of Fashion-MNIST; `instead` replaces one by its part_kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for (part, kind), name in NAMES.items():
        samples = 20 if part == "train" else 10
        values = pixels(samples, 28, 28) if kind == "images" else torch.arange(samples) % 10
        chosen = instead.get(f"{part}_{kind}", values)
        if chosen is not None:
            data = idx(chosen)
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return folder


def fashion(data_root: Path, download: bool = False) -> FashionMNIST:
    return FashionMNIST(data_root=data_root, download=download, loss="cross_entropy")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw", "fashion-mnist"])
def test_reads_idx_files(tmp_path: Path, folder: str, suffix: str) -> None:
    write_fashion(tmp_path / folder, suffix)
    task = fashion(tmp_path).load()
    check(task, input_shape=(1, 28, 28), outputs=10, train=20, test=10)
    inputs, targets = task.data.train.tensors  # type: ignore[attr-defined]
    torch.testing.assert_close(inputs[:, 0], (pixels(20, 28, 28) / 255 - 0.2860) / 0.3530)
    assert targets.tolist() == [*range(10), *range(10)]


@pytest.mark.parametrize(
    ("instead", "name", "message"),
    [
        (
            {"t10k_labels": None},
            "t10k-labels-idx1-ubyte",
            "found no such file, expected it beside the others",
        ),
        (
            {"train_labels": pixels(20, 28, 28)},
            "train-labels-idx1-ubyte.gz",
            "IDX images.*expected 00 00 08 01",
        ),
        ({"t10k_images": torch.arange(10)}, "t10k-images-idx3-ubyte.gz", "IDX labels.*expected 00 00 08 03"),
        (
            {"train_labels": torch.arange(19) % 10},
            "train-labels-idx1-ubyte.gz",
            "found 19 labels, expected 20",
        ),
        (
            {"train_labels": 1 + torch.arange(20) % 10},
            "train-labels-idx1-ubyte.gz",
            "found label 10, expected 0 to 9",
        ),
        (
            {"t10k_images": pixels(10, 32, 32)},
            "t10k-images-idx3-ubyte.gz",
            r"found images of \(32, 32\) pixels",
        ),
    ],
)
def test_names_the_bad_file(tmp_path: Path, instead: dict[str, Tensor | None], name: str, message: str) -> None:
    write_fashion(tmp_path, instead=instead)
    with pytest.raises(DataError, match=message) as caught:
        fashion(tmp_path).load()
    assert str(caught.value).startswith(str(tmp_path / name))


def test_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not in FashionMNIST/raw or fashion-mnist .*dataset.download=true.*data_root"):
        fashion(tmp_path / "nowhere").load()
    assert not (tmp_path / "nowhere").exists()


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets Fashion-MNIST's files come from a folder; returns the names of those that are asked for, as they are."""
    asked = []

    def from_folder(file: Published) -> Published:
        asked.append(file.name)
        source = folder / file.name
        return replace(file, url=source.as_uri(), sha256=hashlib.sha256(source.read_bytes()).hexdigest())

    download = Published.download
    monkeypatch.setattr(Published, "download", lambda file, target: download(from_folder(file), target))
    return asked


def test_downloads_only_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = publish(write_fashion(tmp_path / "source"), monkeypatch)
    for _ in range(2):
        assert len(fashion(tmp_path / "new", download=True).load().data.train) == 20  # type: ignore[arg-type]
    assert sorted(asked) == sorted(f"{name}.gz" for name in NAMES.values())
    left = {path.name for path in (tmp_path / "new").iterdir()}
    assert left == {"FashionMNIST", ".download.lock"}


def test_does_not_write_beside_files_that_are_there(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    before = sorted(tmp_path.iterdir())
    fashion(tmp_path, download=True).load()
    assert sorted(tmp_path.iterdir()) == before


def test_download_completes_a_partial_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = publish(write_fashion(tmp_path / "source"), monkeypatch)
    write_fashion(tmp_path / "FashionMNIST" / "raw", instead={"t10k_labels": None})
    check(fashion(tmp_path, download=True).load(), input_shape=(1, 28, 28), outputs=10, train=20, test=10)
    assert asked == ["t10k-labels-idx1-ubyte.gz"]


def test_a_failed_download_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, timeout: float) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(DataError, match="downloading fashion_mnist failed: no route to host"):
        fashion(tmp_path, download=True).load()
    assert list((tmp_path / "FashionMNIST" / "raw").iterdir()) == []


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_real_files() -> None:
    task = fashion(DEBIAN).load()
    check(task, input_shape=(1, 28, 28), outputs=10, train=60_000, test=10_000)
    inputs, targets = task.data.train.tensors  # type: ignore[attr-defined]
    assert targets.bincount().tolist() == [6000] * 10
    assert inputs.mean().abs() < 0.01 and (inputs.std() - 1).abs() < 0.01
