"""CIFAR-10: tiny files in its format, and an archive that is downloaded or refused."""

import hashlib
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from idx_files import pixels
from resident import check

from ddp_agent.data.datasets import cifar10 as cifar10_module
from ddp_agent.data.datasets.cifar10 import ARCHIVE, CIFAR10
from ddp_agent.data.readers.download import Published
from ddp_agent.errors import DataError


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny files in CIFAR-10's format, whose checksums torchvision expects here."""
    import torchvision

    def write(name: str, content: dict[str, Any]) -> list[str]:
        path = tmp_path / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return [name, hashlib.md5(path.read_bytes()).hexdigest()]

    def batch(first: int) -> dict[str, Any]:
        data = pixels(5, 3072).numpy().astype(numpy.uint8)
        return {"data": data, "labels": [(first + i) % 10 for i in range(5)]}

    meta = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    files = torchvision.datasets.CIFAR10
    monkeypatch.setattr(files, "train_list", [write(f"data_batch_{i}", batch(5 * i)) for i in (1, 2)])
    monkeypatch.setattr(files, "test_list", [write("test_batch", batch(0))])
    monkeypatch.setattr(files, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path


def cifar10(data_root: Path, augment: bool = False) -> CIFAR10:
    return CIFAR10(data_root=data_root, download=False, augment=augment, loss="cross_entropy")


def test_reads_torchvisions_files(cifar: Path) -> None:
    task = cifar10(cifar).load()
    check(task, input_shape=(3, 32, 32), outputs=10, train=10, test=5)
    assert task.data.augment is None
    inputs, targets = task.data.train.tensors  # type: ignore[attr-defined]
    assert targets.tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    first = pixels(5, 3072)[0].view(3, 32, 32)
    torch.testing.assert_close(inputs[0, 2], (first[2] / 255 - 0.4465) / 0.2616)
    augmented = cifar10(cifar, augment=True).load()
    assert augmented.data.augment is not None and augmented.data.augment(inputs).shape == inputs.shape
    assert augmented.data.sha256 == task.data.sha256


def test_says_how_to_get_it(cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"found no folder cifar-10-batches-py \(no such folder\).*dataset.download=true"
    ):
        cifar10(tmp_path / "nowhere").load()
    (cifar / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"garbage")
    with pytest.raises(
        DataError, match=r"differ from the published ones.*dataset.download=true.*cifar-10-python.tar.gz"
    ):
        cifar10(cifar).load()


def pack(folder: Path, archive: Path) -> Published:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return Published(ARCHIVE.name, archive.as_uri(), hashlib.sha256(archive.read_bytes()).hexdigest())


def test_is_downloaded_by_sha256_and_unpacked(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10_module, "ARCHIVE", pack(cifar / "cifar-10-batches-py", tmp_path / "source.tar.gz"))
    downloaded = CIFAR10(data_root=tmp_path / "new", download=True, augment=False, loss="cross_entropy").load()
    assert downloaded.data.sha256 == cifar10(cifar).load().data.sha256


def test_from_somebody_else_is_not_unpacked(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(cifar / "cifar-10-batches-py", tmp_path / "source.tar.gz")
    foreign = replace(ARCHIVE, url=(tmp_path / "source.tar.gz").as_uri())
    monkeypatch.setattr(cifar10_module, "ARCHIVE", foreign)
    with pytest.raises(DataError, match=f"found content with sha256 .*, expected {ARCHIVE.sha256}"):
        CIFAR10(data_root=tmp_path / "new", download=True, augment=False, loss="cross_entropy").load()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".download.lock"]
