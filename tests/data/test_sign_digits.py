"""Hands that show digits: a tiny packed file, a tiny zip file of photos, and the errors for bad ones."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from configs import node
from PIL import Image
from resident import tensors

from ddp_agent.config.registry import build
from ddp_agent.data.datasets import sign_digits
from ddp_agent.data.readers.zip_members import content_sha256
from ddp_agent.data.task import Task
from ddp_agent.errors import DataError

EACH = 5


def load(data_root: Path, **values: Any) -> Task:
    task: Task = build("dataset", node("dataset", "sign_digits", **values), data_root=data_root).load()
    return task


def arrays(**instead: Any) -> dict[str, Any]:
    """One colour a picture."""
    label = numpy.arange(10 * EACH, dtype="u1") // EACH
    shade = 4 * numpy.arange(10 * EACH, dtype="u1").reshape(-1, 1, 1, 1)
    image = numpy.concatenate([shade, shade + 1, shade + 2], 3) + numpy.zeros((1, 32, 32, 1), "u1")
    path = numpy.array([f"{digit}/IMG_{place:03d}.JPG" for place, digit in enumerate(label)])
    return {"image": image, "label": label, "path": path} | instead


def write_packed(folder: Path, **instead: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    numpy.savez_compressed(folder / "signdigits32.npz", **arrays(**instead))
    return folder


def write_photos(folder: Path, **more: bytes) -> Path:
    """The same pictures, larger, in a file format that loses nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "sign_language_digits.zip", "w") as archive:
        for image, path in zip(arrays()["image"], arrays()["path"], strict=True):
            file = io.BytesIO()
            Image.fromarray(image).resize((100, 100)).save(file, "PNG")
            archive.writestr(f"Sign-4b09433/Dataset/{path}", file.getvalue())
        archive.writestr("Sign-4b09433/Examples/example_0.JPG", b"x")
        for name, data in more.items():
            archive.writestr(f"Sign-4b09433/Dataset/{name}", data)
    return folder


@pytest.mark.parametrize("write", [write_packed, write_photos])
@pytest.mark.parametrize("place", ["", "sign_language_digits_32"])
def test_a_fifth_of_each_digit_is_tested(tmp_path: Path, place: str, write: Callable[[Path], Path]) -> None:
    write(tmp_path / place)
    torch.manual_seed(1)
    task = load(tmp_path)
    torch.manual_seed(2)
    assert load(tmp_path).data.sha256 == task.data.sha256
    inputs, labels, test_inputs, test_labels = tensors(task)
    assert task.data.input_shape == (3, 32, 32) and task.objective.outputs == 10
    assert labels.bincount().tolist() == [EACH - 1] * 10 and test_labels.bincount().tolist() == [1] * 10
    mean = torch.tensor([0.6748, 0.6458, 0.6163])
    std = torch.tensor([0.1370, 0.1544, 0.1827])
    everything = torch.cat([inputs, test_inputs])[:, :, 5, 7] * std + mean
    shades = (everything * 255).round().long()
    assert sorted(shades[:, 0].tolist()) == [4 * place for place in range(10 * EACH)]
    assert torch.equal(shades[:, 2], shades[:, 0] + 2)
    assert torch.equal(shades[:, 0] // (4 * EACH), torch.cat([labels, test_labels]))


def test_photos_and_packed_pictures_are_the_same_data(tmp_path: Path) -> None:
    backwards = {name: array[::-1] for name, array in arrays().items()}
    folders = write_packed(tmp_path / "a"), write_packed(tmp_path / "b", **backwards), write_photos(tmp_path / "c")
    assert len({load(folder).data.sha256 for folder in folders}) == 1


def test_augmentation_can_be_left_out(tmp_path: Path) -> None:
    write_photos(tmp_path)
    augment = load(tmp_path).data.augment
    assert augment is not None and augment(tensors(load(tmp_path))[0]).shape == (40, 3, 32, 32)
    assert load(tmp_path, augment=False).data.augment is None


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ({"image": numpy.zeros((50, 64, 64, 3), "u1")}, r"image: found \(50, 64, 64, 3\), expected pictures of"),
        ({"image": numpy.zeros((50, 32, 32), "u1")}, r"image: found uint8 of shape \(50, 32, 32\), expected uint8"),
        ({"label": 1 + arrays()["label"]}, "label: found 10, expected 0 to 9"),
        ({"label": arrays()["label"] % 9}, "label: found no sample of 9"),
        ({"path": arrays()["path"][:7]}, "found 50 in image, 50 in label, 7 in path, expected equally many"),
    ],
)
def test_packed_pictures_of_another_kind_are_refused(tmp_path: Path, instead: dict[str, Any], message: str) -> None:
    write_packed(tmp_path, **instead)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "signdigits32.npz"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("0/IMG.JPG", b"\xff\xd8\xff", r"0/IMG.JPG: found no readable image \(.*\), expected PNG or JPEG"),
        ("ten/IMG.JPG", b"", r"found Dataset/ten/IMG.JPG, expected Dataset/<digit>/\*.JPG"),
    ],
)
def test_photos_of_another_kind_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(write_photos(tmp_path, **{name: data}))
    assert str(caught.value).startswith(str(tmp_path / "sign_language_digits.zip"))


def test_a_digit_without_photos_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: array[: 9 * EACH] for name, array in arrays().items()}
    monkeypatch.setattr(f"{__name__}.arrays", lambda: few)
    with pytest.raises(DataError, match=r"Dataset: found no photo of 9, expected some of each of 0 to 9"):
        load(write_photos(tmp_path))


def test_a_zip_file_without_photos_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sign_language_digits.zip", "w") as archive:
        archive.writestr("recordings/0_ann_0.wav", b"x")
    with pytest.raises(DataError, match=r"found no Dataset/<digit>/\*.JPG, expected the photos of https://codeload"):
        load(tmp_path)


def test_missing_files_are_named_and_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"found no sign_language_digits.zip, .*dataset.download=true.*https://codeload"
    ):
        load(tmp_path)
    source = write_photos(tmp_path / "source") / "sign_language_digits.zip"
    published = replace(sign_digits.PHOTOS, url=source.as_uri(), sha256=content_sha256(source, "Dataset"))
    monkeypatch.setattr(sign_digits, "PHOTOS", published)
    assert load(tmp_path, download=True).data.sha256 == load(source.parent).data.sha256
    assert load(tmp_path).data.sha256 == load(source.parent).data.sha256


@pytest.mark.data
def test_the_packed_pictures(data_root: Path) -> None:
    task = load(data_root)
    inputs, labels, test_inputs, test_labels = tensors(task)
    assert (len(inputs), len(test_inputs)) == (1651, 411)
    assert (labels.bincount() + test_labels.bincount()).tolist() == [205, 206, 206, 206, 207, 207, 207, 206, 208, 204]
    assert inputs.mean((0, 2, 3)).abs().max() < 0.02 and (inputs.std((0, 2, 3)) - 1).abs().max() < 0.02
