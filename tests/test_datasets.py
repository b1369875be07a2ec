"""Datasets: what they hold, and what they say about files that are missing, damaged or foreign."""

import gzip
import hashlib
import math
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
import pytest
import torch
from idx_files import idx, pixels
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from ddp_agent.build import build, problems
from ddp_agent.datasets import cifar10 as cifar10_module
from ddp_agent.datasets.article import Article
from ddp_agent.datasets.augment import crop_and_flip
from ddp_agent.datasets.base import LOSSES, Task, accuracy, fingerprint, half_squared_error
from ddp_agent.datasets.cifar10 import ARCHIVE, CIFAR10
from ddp_agent.datasets.digits import DATA, Digits, stratified_split
from ddp_agent.datasets.download import Published
from ddp_agent.datasets.fashion_mnist import FashionMNIST
from ddp_agent.datasets.idx import read_idx
from ddp_agent.datasets.image_folder import ImageFolder
from ddp_agent.errors import ConfigError, DataError
from ddp_agent.loader import stream

CONF = Path(__file__).parents[1] / "conf" / "dataset"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def node(name: str, **values: Any) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()} | values


@pytest.mark.parametrize("name", sorted(file.stem for file in CONF.glob("*.yaml")))
def test_every_yaml_has_exactly_the_keys_of_its_class(name: str) -> None:
    assert problems("dataset", node(name), runtime=["data_root"]) == []


def test_bad_values_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.samples: found 0, expected an integer >= 1"):
        build("dataset", node("article", samples=0))
    with pytest.raises(ConfigError, match=r"dataset.loss: found 'hinge', expected one of cross_entropy, half_squared"):
        build("dataset", node("digits", loss="hinge"))
    with pytest.raises(ConfigError, match=r"data_root: found None, expected a path"):
        build("dataset", node("fashion_mnist"), data_root=None)


def test_torchvision_is_only_imported_where_it_is_used() -> None:
    code = """
import importlib, pkgutil, sys
import ddp_agent.datasets, ddp_agent.models
for package in (ddp_agent.datasets, ddp_agent.models):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from ddp_agent.datasets.digits import Digits
Digits(loss="cross_entropy").load()
print(*sorted({"torchvision", "PIL", "sklearn"} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


# Losses and metric


def test_half_squared_error_is_the_articles() -> None:
    output = torch.tensor([[0.5, 1.0, -1.0], [2.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = half_squared_error(output, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((0.5 * (0.25 + 0 + 1) + 0.5 * (1 + 0 + 0)) / 2)
    torch.autograd.backward(loss)
    expected = torch.tensor([[0.5, 0.0, -1.0], [1.0, 0.0, 0.0]], dtype=torch.float64) / 2  # (output - one hot) / batch
    torch.testing.assert_close(output.grad, expected)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_losses_are_means_over_the_batch(loss: str) -> None:
    output, target = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    criterion = LOSSES[loss]  # type: ignore[index]
    halves = (criterion(output[:3], target[:3]) + criterion(output[3:], target[3:])) / 2
    torch.testing.assert_close(criterion(output, target), halves)


def test_accuracy_is_one_number_a_sample() -> None:
    output = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert accuracy(output, torch.tensor([1, 1, 1])).tolist() == [1.0, 0.0, 1.0]


def test_fingerprint_sees_values_types_and_shapes() -> None:
    base = torch.arange(6.0)
    others = [base.clone(), base.view(2, 3), base.double(), base.flip(0), -base]
    assert fingerprint(base) == fingerprint(others[0])
    assert len({fingerprint(other) for other in others}) == 5


# digits


def test_digits_are_the_published_ones() -> None:
    labels = read_idx(DATA / "digits-labels-idx1-ubyte.gz", "labels")
    images = read_idx(DATA / "digits-images-idx3-ubyte.gz", "images")
    assert images.shape == (1797, 8, 8) and images.max() == 16
    # Test part of the UCI data set's documentation, "No of examples in testing set".
    assert labels.long().bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 100_000
    licence = (DATA / "README.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in licence and "Alpaydin" in licence and "archive.ics.uci.edu" in licence


def test_digits_split_is_stratified_and_loses_nothing() -> None:
    labels = read_idx(DATA / "digits-labels-idx1-ubyte.gz", "labels").long()
    train, test = stratified_split(labels, 0.2, seed=1)
    assert torch.cat([train, test]).sort().values.tolist() == list(range(1797))
    assert labels[test].bincount().tolist() == [round(0.2 * count) for count in labels.bincount().tolist()]
    other = stratified_split(labels, 0.2, seed=2)[1]
    assert set(test.tolist()) != set(other.tolist())


def test_digits_do_not_depend_on_the_runs_seed() -> None:
    hashes = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        hashes.add(Digits(loss="cross_entropy").load().sha256)
    assert len(hashes) == 1
    task = Digits(loss="half_squared_error").load()
    check(task, input_shape=(1, 8, 8), outputs=10, train=1438, test=359)
    assert task.loss is half_squared_error


def check(task: Task, *, input_shape: tuple[int, ...], outputs: int, train: int, test: int) -> None:
    """What the rest of the harness relies on, for data that is kept on the device."""
    assert (task.input_shape, task.outputs, task.metric_name, task.higher_is_better) == (
        input_shape,
        outputs,
        "accuracy",
        True,
    )
    for part, samples in ((task.train, train), (task.test, test)):
        inputs, targets = part.tensors  # type: ignore[attr-defined]
        assert inputs.shape == (samples, *input_shape) and inputs.dtype == torch.float32
        assert targets.shape == (samples,) and targets.dtype == torch.int64
        assert targets.min() >= 0 and targets.max() < outputs
        assert inputs.mean().abs() < 1 and 0.3 < inputs.std() < 3
    assert task.labels is not None and torch.equal(task.labels, task.train.tensors[1])  # type: ignore[attr-defined]
    assert len(task.class_names) in (0, outputs)
    assert len(task.sha256) == 64


# article


def test_article_is_the_same_for_every_seed_and_nearly_separable() -> None:
    hashes = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        task = build("dataset", node("article")).load()
        hashes.add(task.sha256)
    assert len(hashes) == 1
    check(task, input_shape=(10,), outputs=2, train=1000, test=1000)
    assert task.loss is half_squared_error
    (inputs, labels), (test_inputs, test_labels) = task.train.tensors, task.test.tensors
    weights = torch.linalg.lstsq(with_bias(inputs), torch.eye(2)[labels]).solution  # what half squared error leads to
    right = accuracy(with_bias(test_inputs) @ weights, test_labels).mean()
    assert right > 0.96
    assert abs(right - 0.5 * (1 + math.erf(2.3 / math.sqrt(2)))) < 0.01


def with_bias(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)


def test_article_parts_are_different_draws() -> None:
    task = Article(samples=50, test_samples=50, features=3, separation=1.0, loss="cross_entropy").load()
    assert not torch.equal(task.train[:][0], task.test[:][0])


# Fashion-MNIST

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
def test_fashion_mnist_reads_idx_files(tmp_path: Path, folder: str, suffix: str) -> None:
    write_fashion(tmp_path / folder, suffix)
    task = fashion(tmp_path).load()
    check(task, input_shape=(1, 28, 28), outputs=10, train=20, test=10)
    inputs, targets = task.train.tensors  # type: ignore[attr-defined]
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
def test_fashion_mnist_names_the_bad_file(
    tmp_path: Path, instead: dict[str, Tensor | None], name: str, message: str
) -> None:
    write_fashion(tmp_path, instead=instead)
    with pytest.raises(DataError, match=message) as caught:
        fashion(tmp_path).load()
    assert str(caught.value).startswith(str(tmp_path / name))


def test_fashion_mnist_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"not in FashionMNIST/raw or fashion-mnist; .*data_root=.*dataset.download=true"
    ):
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


def test_fashion_mnist_downloads_only_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = publish(write_fashion(tmp_path / "source"), monkeypatch)
    for _ in range(2):
        assert len(fashion(tmp_path / "new", download=True).load().train) == 20  # type: ignore[arg-type]
    assert sorted(asked) == sorted(f"{name}.gz" for name in NAMES.values())
    left = {path.name for path in (tmp_path / "new").iterdir()}
    assert left == {"FashionMNIST", ".download.lock"}


def test_fashion_mnist_does_not_write_beside_files_that_are_there(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    before = sorted(tmp_path.iterdir())
    fashion(tmp_path, download=True).load()
    assert sorted(tmp_path.iterdir()) == before


def test_fashion_mnist_download_completes_a_partial_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_fashion_mnist_real_files() -> None:
    task = fashion(DEBIAN).load()
    check(task, input_shape=(1, 28, 28), outputs=10, train=60_000, test=10_000)
    inputs, targets = task.train.tensors  # type: ignore[attr-defined]
    assert targets.bincount().tolist() == [6000] * 10
    assert inputs.mean().abs() < 0.01 and (inputs.std() - 1).abs() < 0.01


# CIFAR-10


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny files in CIFAR-10's format, whose checksums torchvision is told to expect."""
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


def test_cifar10_reads_torchvisions_files(cifar: Path) -> None:
    task = cifar10(cifar).load()
    check(task, input_shape=(3, 32, 32), outputs=10, train=10, test=5)
    assert task.augment is None
    inputs, targets = task.train.tensors  # type: ignore[attr-defined]
    assert targets.tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    first = pixels(5, 3072)[0].view(3, 32, 32)
    torch.testing.assert_close(inputs[0, 2], (first[2] / 255 - 0.4465) / 0.2616)
    augmented = cifar10(cifar, augment=True).load()
    assert augmented.augment is not None and augmented.augment(inputs).shape == inputs.shape
    assert augmented.sha256 == task.sha256


def test_cifar10_says_how_to_get_it(cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar-10-batches-py: found no such folder.*dataset.download=true"):
        cifar10(tmp_path / "nowhere").load()
    (cifar / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"garbage")
    with pytest.raises(
        DataError, match=r"differ from the published ones.*cifar-10-python.tar.gz.*dataset.download=true"
    ):
        cifar10(cifar).load()


def pack(folder: Path, archive: Path, extra: str | None = None) -> Published:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
        if extra is not None:
            tar.add(folder / "test_batch", extra)
    return Published(ARCHIVE.name, archive.as_uri(), hashlib.sha256(archive.read_bytes()).hexdigest())


def test_cifar10_is_downloaded_by_sha256_and_unpacked(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10_module, "ARCHIVE", pack(cifar / "cifar-10-batches-py", tmp_path / "source.tar.gz"))
    downloaded = CIFAR10(data_root=tmp_path / "new", download=True, augment=False, loss="cross_entropy").load()
    assert downloaded.sha256 == cifar10(cifar).load().sha256


def test_cifar10_from_somebody_else_is_not_unpacked(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(cifar / "cifar-10-batches-py", tmp_path / "source.tar.gz")
    foreign = replace(ARCHIVE, url=(tmp_path / "source.tar.gz").as_uri())
    monkeypatch.setattr(cifar10_module, "ARCHIVE", foreign)
    with pytest.raises(DataError, match=f"found content with sha256 .*, expected {ARCHIVE.sha256}"):
        CIFAR10(data_root=tmp_path / "new", download=True, augment=False, loss="cross_entropy").load()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".download.lock"]


# Augmentation


def test_crop_and_flip_gives_shifted_or_mirrored_images() -> None:
    images = torch.randn(60, 3, 6, 5)
    torch.manual_seed(0)
    changed = crop_and_flip(images, padding=1)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    windows = {
        (row, column, mirrored): window.flip(3) if mirrored else window
        for row in range(3)
        for column in range(3)
        for mirrored in (False, True)
        for window in [padded[:, :, row : row + 6, column : column + 5]]
    }
    used = [{key for key, window in windows.items() if torch.equal(window[i], changed[i])} for i in range(len(images))]
    assert all(len(keys) == 1 for keys in used)
    assert len(set.union(*used)) > 12  # of 18, in 60 draws
    torch.manual_seed(0)
    assert torch.equal(crop_and_flip(images, padding=1), changed)
    assert not torch.equal(crop_and_flip(images, padding=1), changed)


# Image folders


def write_images(root: Path, classes: dict[str, list[str]], size: tuple[int, int] = (12, 9)) -> Path:
    for split, names in classes.items():
        for shade, name in enumerate(names):
            for i in range(3):
                file = root / split / name / f"{i}.{'jpg' if i else 'png'}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", size, (80 * shade, 10 * i, 0)).save(file)
    return root


def folder(data_root: Path, workers: int = 0) -> ImageFolder:
    return ImageFolder(data_root=data_root, image_size=8, augment=True, workers=workers, loss="cross_entropy")


BOTH = {"train": ["cat", "dog", "eel"], "test": ["cat", "dog", "eel"]}


@pytest.mark.parametrize("workers", [0, 1])
def test_image_folder_streams_what_is_there(tmp_path: Path, workers: int) -> None:
    task = folder(write_images(tmp_path, BOTH), workers).load()
    assert (task.input_shape, task.outputs, task.workers) == ((3, 8, 8), 3, workers)
    ((inputs, targets),) = stream(task.train, [list(range(9))], device=torch.device("cpu"), workers=task.workers)
    assert task.labels is not None and targets.tolist() == task.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert task.class_names == ("cat", "dog", "eel")
    assert inputs.shape == (9, 3, 8, 8)
    red = inputs[::3, 0].mean((1, 2)) * 0.229 + 0.485  # of the lossless ones
    torch.testing.assert_close(red, torch.tensor([0.0, 80.0, 160.0]) / 255, atol=1e-5, rtol=0)
    assert task.augment is not None and task.augment(inputs).shape == inputs.shape


def test_image_folder_fingerprint_sees_files_and_not_their_place(tmp_path: Path) -> None:
    here, there = (folder(write_images(tmp_path / place, BOTH)).load().sha256 for place in ("a", "b"))
    assert here == there
    (tmp_path / "b" / "test" / "cat" / "0.png").rename(tmp_path / "b" / "test" / "dog" / "9.png")
    assert folder(tmp_path / "b").load().sha256 != here


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"train": ["cat", "dog"]}, "test: found no such folder, expected .*/test/<class>"),
        (
            {"train": ["cat", "dog", "eel"], "test": ["cat", "dog"]},
            "test: expected the classes of train/, .* for eel",
        ),
        (
            {"train": ["cat", "dog"], "test": ["ant", "cat", "dog"]},
            "train: expected the classes of test/, .* for ant",
        ),
        ({"train": ["cat"], "test": ["cat"]}, "train: found 1 class folders, expected 2 or more"),
    ],
)
def test_image_folder_refuses_other_layouts(tmp_path: Path, classes: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        folder(write_images(tmp_path, classes)).load()


def test_image_folder_refuses_a_class_without_images(tmp_path: Path) -> None:
    write_images(tmp_path, BOTH)
    for image in (tmp_path / "test" / "dog").iterdir():
        image.rename(image.with_suffix(".txt"))
    with pytest.raises(DataError, match=r"test: expected images in every class folder.*dog"):
        folder(tmp_path).load()


@pytest.mark.parametrize("workers", [0, 1])
def test_image_folder_names_an_unreadable_image_when_it_is_hit(tmp_path: Path, workers: int) -> None:
    task = folder(write_images(tmp_path, BOTH)).load()
    bad = tmp_path / "train" / "cat" / "0.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError, match="found no readable image") as caught:
        list(stream(task.train, [[8], [0]], device=torch.device("cpu"), workers=workers))
    assert str(caught.value).startswith(f"{bad}: ") and "\n" not in str(caught.value)
