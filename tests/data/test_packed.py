"""Single words in one packed file: a tiny one, and the errors for bad ones."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from configs import node
from resident import tensors

from ddp_agent.config.registry import build
from ddp_agent.data.readers.packed import expanded
from ddp_agent.data.task import Task
from ddp_agent.errors import ConfigError, DataError

WORDS = ("cat", "dog", "zoom in")
EACH = {"train": 4, "validation": 1, "test": 2}


def load(data_root: Path, **values: Any) -> Task:
    settings = {"corpus": "arabic16", "seconds": 0.05, **values}
    task: Task = build("dataset", node("dataset", "speech_commands", **settings), data_root=data_root).load()
    return task


def arrays(**instead: Any) -> dict[str, Any]:
    rows = [
        (label, split, 10 * split + take % 2)
        for split, count in enumerate(EACH.values())
        for label in range(3)
        for take in range(count)
    ]
    label, split, speaker = (numpy.array(column) for column in zip(*rows, strict=True))
    audio = numpy.random.default_rng(0).integers(0, 256, (len(rows), 400), dtype=numpy.uint8)
    found: dict[str, Any] = {"audio": audio, "label": label.astype("u1"), "split": split.astype("u1")}
    found |= {"speaker": speaker.astype("i4"), "classes": numpy.array(WORDS), "more": audio[:1]}
    return {name: array for name, array in (found | instead).items() if array is not None}


def write_packed(folder: Path, **instead: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    numpy.savez_compressed(folder / "asc16_mulaw8k.npz", **arrays(**instead))
    return folder


@pytest.mark.parametrize("place", ["", "arabic_speech_commands_16x8k"])
def test_packed_words_are_unpacked_by_part(tmp_path: Path, place: str) -> None:
    write_packed(tmp_path / place)
    task, validated = load(tmp_path), load(tmp_path, tested="validation")
    waves, labels, test_waves, test_labels = tensors(task)
    assert task.presentation.class_names == WORDS
    assert labels.bincount().tolist() == [4, 4, 4] and test_labels.bincount().tolist() == [2, 2, 2]
    codes = arrays()["audio"]
    assert torch.equal(waves, expanded(codes[:12])) and torch.equal(test_waves, expanded(codes[15:]))
    assert torch.equal(tensors(validated)[2], expanded(codes[12:15]))
    assert task.data.groups is not None and task.data.groups.tolist() == [0, 1] * 6
    assert load(tmp_path, words=["dog", "cat"]).presentation.class_names == ("cat", "dog")


def test_mu_law_is_expanded_as_its_formula_says() -> None:
    found = expanded(numpy.arange(256, dtype=numpy.uint8)).double()
    v = torch.arange(256, dtype=torch.float64) / 255 * 2 - 1
    torch.testing.assert_close(found / 32767, v.sign() * (256 ** v.abs() - 1) / 255, atol=2e-5, rtol=0)
    assert found[0] == -32767 and found[255] == 32767 and torch.equal(found, -found.flip(0))


def test_packed_words_of_another_rate_keep_their_length_in_seconds(tmp_path: Path) -> None:
    slow = tensors(load(write_packed(tmp_path), rate=4000))[0]
    assert slow.shape == (12, 200) and slow[:, 190:].abs().max() > 100


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ({"speaker": None}, "found no array speaker, expected an .npz file with audio, label, split, speaker, classes"),
        ({"audio": numpy.zeros((21, 400), "f4")}, r"audio: found float32 of shape \(21, 400\), expected uint8 with 2"),
        ({"audio": numpy.zeros(21, "u1")}, r"audio: found uint8 of shape \(21,\), expected uint8 with 2 dimensions"),
        ({"label": numpy.zeros(20, "u1")}, "found 21 in audio, 20 in label, .* expected equally many"),
        ({"label": 1 + arrays()["label"]}, "label: found 3, expected 0 to 2"),
        ({"label": arrays()["label"] % 2}, "label: found no sample of 2, expected some of each of 0 to 2"),
        ({"split": arrays()["split"] * 3}, "split: found 3, expected 0 to 2"),
        ({"split": arrays()["split"] // 2}, "split: found no sample of 2"),
        ({"classes": numpy.array([1, 2, 3])}, "classes: found int64 .*, expected str_"),
        ({"classes": numpy.array(["cat", None], dtype=object)}, "classes: found object .*, expected str_"),
        ({name: array[:0] for name, array in arrays().items() if name != "classes"}, "found 0 in audio"),
    ],
)
def test_a_packed_file_with_other_content_is_refused(tmp_path: Path, instead: dict[str, Any], message: str) -> None:
    write_packed(tmp_path, **instead)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "asc16_mulaw8k.npz"))


def lying() -> bytes:
    """A file whose header claims an array of many petabytes."""
    header, file = io.BytesIO(), io.BytesIO()
    claims = {"shape": (2**50, 400), "fortran_order": False, "descr": "|u1"}
    numpy.lib.format.write_array_header_1_0(header, claims)
    with zipfile.ZipFile(file, "w") as archive:
        for name in arrays():
            archive.writestr(f"{name}.npy", header.getvalue())
    return file.getvalue()


def without_arrays() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in arrays():
            archive.writestr(f"{name}.npy", "no array")
    return file.getvalue()


def test_a_packed_file_that_is_damaged_or_foreign_is_refused(tmp_path: Path) -> None:
    path = write_packed(tmp_path) / "asc16_mulaw8k.npz"
    good = path.read_bytes()
    single, code = io.BytesIO(), b"cos\nsystem\n(S'echo bad'\ntR."
    numpy.save(single, numpy.zeros(3))
    for data in (b"", good[:5000], good[:-30], single.getvalue(), code, lying(), without_arrays()):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"asc16_mulaw8k.npz: found .*, expected an .npz file with audio") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value) and "pickle" not in str(caught.value)


def test_a_missing_packed_file_is_named_with_how_the_words_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"found no asc16_mulaw8k.npz, .*git clone .*corpus=folders dataset.words=\[zero,"
    ):
        load(tmp_path, download=True)


def test_folders_that_are_missing_point_at_the_packed_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no testing_list.txt .*\(or dataset.corpus=arabic16 for asc16_mulaw8k"):
        load(write_packed(tmp_path), corpus="folders")


def test_one_file_cannot_be_streamed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset: workers: found 2, expected 0: arabic16 is one file"):
        load(tmp_path, workers=2)


@pytest.mark.data
def test_the_packed_words(data_root: Path) -> None:
    task, validated = load(data_root, seconds=1.0), load(data_root, seconds=1.0, tested="validation")
    assert (task.objective.outputs, len(task.data.train), len(task.data.test)) == (16, 2880, 960)  # type: ignore[arg-type]
    assert task.data.labels is not None and task.data.labels.bincount().tolist() == [180] * 16
    assert task.data.groups is not None and task.data.groups.bincount().tolist() == [160] * 18
    assert task.data.sha256 != validated.data.sha256
