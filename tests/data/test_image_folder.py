"""Folders of images, a class each: streamed, fingerprinted, refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ddp_agent.data.datasets.image_folder import ImageFolder
from ddp_agent.data.loader import stream
from ddp_agent.errors import DataError


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
def test_streams_what_is_there(tmp_path: Path, workers: int) -> None:
    task = folder(write_images(tmp_path, BOTH), workers).load()
    assert (task.data.input_shape, task.objective.outputs, task.data.workers) == ((3, 8, 8), 3, workers)
    ((inputs, targets),) = stream(
        task.data.train, [list(range(9))], device=torch.device("cpu"), workers=task.data.workers
    )
    assert task.data.labels is not None and targets.tolist() == task.data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert task.presentation.class_names == ("cat", "dog", "eel")
    assert inputs.shape == (9, 3, 8, 8)
    red = inputs[::3, 0].mean((1, 2)) * 0.229 + 0.485  # of the lossless ones
    torch.testing.assert_close(red, torch.tensor([0.0, 80.0, 160.0]) / 255, atol=1e-5, rtol=0)
    assert task.data.augment is not None and task.data.augment(inputs).shape == inputs.shape


def test_fingerprint_sees_files_and_not_their_place(tmp_path: Path) -> None:
    here, there = (folder(write_images(tmp_path / place, BOTH)).load().data.sha256 for place in ("a", "b"))
    assert here == there
    (tmp_path / "b" / "test" / "cat" / "0.png").rename(tmp_path / "b" / "test" / "dog" / "9.png")
    assert folder(tmp_path / "b").load().data.sha256 != here


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"train": ["cat", "dog"]}, r"test: found no such folder \(only train/ in .*\), expected .*/test/<class>"),
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
def test_refuses_other_layouts(tmp_path: Path, classes: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        folder(write_images(tmp_path, classes)).load()


def test_refuses_a_class_without_images(tmp_path: Path) -> None:
    write_images(tmp_path, BOTH)
    for image in (tmp_path / "test" / "dog").iterdir():
        image.rename(image.with_suffix(".txt"))
    with pytest.raises(DataError, match=r"test: expected images in every class folder.*dog"):
        folder(tmp_path).load()


@pytest.mark.parametrize("workers", [0, 1])
def test_names_an_unreadable_image_when_it_is_hit(tmp_path: Path, workers: int) -> None:
    task = folder(write_images(tmp_path, BOTH)).load()
    bad = tmp_path / "train" / "cat" / "0.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError, match="found no readable image") as caught:
        list(stream(task.data.train, [[8], [0]], device=torch.device("cpu"), workers=workers))
    assert str(caught.value).startswith(f"{bad}: ") and "\n" not in str(caught.value)
