"""Spoken digits: tiny zip files in the format of FSDD, and the errors for bad ones."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from configs import node
from rank_pool import RankPool
from resident import tensors
from runs import mode, run
from wav_files import tone, wav

from ddp_agent.config.registry import build
from ddp_agent.data.datasets import spoken_digits
from ddp_agent.data.datasets.spoken_digits import SpokenDigits
from ddp_agent.data.readers.zip_members import content_sha256, members
from ddp_agent.data.task import Task
from ddp_agent.errors import DataError

SPEAKERS = ("theo", "ann")
INDICES = (0, 4, 5, 49)  # two are tested
Files = dict[str, bytes]


def recordings(rate: int = 8000) -> Files:
    """Return several recordings per digit and speaker, each of another length, as in FSDD."""
    return {
        f"{digit}_{speaker}_{index}.wav": wav(tone(300 + 10 * digit + index, seed=100 * place + index), rate)
        for digit in range(10)
        for place, speaker in enumerate(SPEAKERS)
        for index in INDICES
    }


def write(
    folder: Path,
    files: Mapping[str, bytes] = MappingProxyType({}),
    below: str = "recordings/",
    more: Files | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "fsdd_recordings.zip", "w") as archive:
        for name, data in (files or recordings()).items():
            archive.writestr(below + name, data)
        for name, data in (more or {}).items():
            archive.writestr(name, data)
    return folder


def dataset(data_root: Path, **values: Any) -> SpokenDigits:
    settings = {"seconds": 0.05, **values}
    built: SpokenDigits = build("dataset", node("dataset", "spoken_digits", **settings), data_root=data_root)
    return built


def load(data_root: Path, **values: Any) -> Task:
    return dataset(data_root, **values).load()


@pytest.mark.parametrize("place", ["", "fsdd"])
@pytest.mark.parametrize("below", ["recordings/", "free-spoken-digit-dataset-26eb9aa/recordings/"])
def test_the_first_five_of_each_are_tested(tmp_path: Path, place: str, below: str) -> None:
    write(tmp_path / place, below=below, more={"README.md": b"hello", "utils/0_ann_0.wav": b"no recording"})
    task = load(tmp_path)
    waves, digits, test_waves, test_digits = tensors(task)
    assert waves.shape == test_waves.shape == (40, 400) and waves.dtype == torch.int16
    assert digits.bincount().tolist() == test_digits.bincount().tolist() == [4] * 10
    samples = tone(300 + 10 * 7 + 5, seed=5)  # 7_theo_5, in the order of the names the 31st that is trained on
    assert torch.equal(waves[31], torch.cat([samples, samples.new_zeros(25)])) and digits[31] == 7
    assert (task.objective.outputs, task.presentation.class_names) == (10, tuple("0123456789"))
    assert task.data.labels is not None and torch.equal(task.data.labels, digits)


def test_the_speaker_is_known_of_every_recording(tmp_path: Path) -> None:
    train, test, speakers = dataset(write(tmp_path)).read()
    assert speakers == ("ann", "theo")
    assert train.speakers.tolist() == [0, 0, 1, 1] * 10 and test.speakers.tolist() == [0, 0, 1, 1] * 10
    groups = load(tmp_path).data.groups
    assert groups is not None and torch.equal(groups, train.speakers)


def test_digit_and_speaker_are_two_tasks_on_the_same_recordings(tmp_path: Path) -> None:
    write(tmp_path)
    digit, speaker, both = (load(tmp_path, tasks=tasks) for tasks in (["digit"], ["speaker"], ["digit", "speaker"]))
    assert [(each.name, each.outputs) for each in both.subtasks] == [
        ("digit", 10),
        ("speaker", speaker.objective.outputs),
    ]
    assert torch.equal(both.data.train[:][1], torch.stack([digit.data.train[:][1], speaker.data.train[:][1]], 1))
    assert not torch.equal(digit.data.train[:][1], speaker.data.train[:][1])


def test_models_get_spectrograms(tmp_path: Path) -> None:
    task = load(write(tmp_path))
    assert task.data.transform is not None and task.data.augment is not None
    found = task.data.augment(task.data.transform(tensors(task)[0]))
    assert task.data.input_shape == tuple(found.shape[1:]) == (1, 40, 4)
    assert load(tmp_path, augment=False).data.augment is None


def test_recordings_of_another_rate_are_resampled(tmp_path: Path) -> None:
    write(tmp_path / "8"), write(tmp_path / "16", recordings(rate=16000))
    slow, fast = tensors(load(tmp_path / "8"))[0], tensors(load(tmp_path / "16"))[0]
    assert slow.shape == fast.shape
    assert fast[:, 260:].abs().max() < 10 < slow[:, 260:300].abs().max()  # half as long
    assert torch.equal(tensors(load(tmp_path / "16", rate=16000, seconds=0.025))[0], slow)


def test_the_fingerprint_sees_sounds_and_how_they_are_shown(tmp_path: Path) -> None:
    write(tmp_path)
    changes: list[dict[str, Any]] = [{}, {"mels": 30}, {"seconds": 0.04}, {"rate": 4000}]
    found = {load(tmp_path, **change).data.sha256 for change in changes}
    write(tmp_path, recordings() | {"3_ann_5.wav": wav(tone(9))})
    assert len(found | {load(tmp_path).data.sha256}) == 5


# Errors for bad files.

FEW = {name: data for name, data in recordings().items() if not name.startswith("0")}  # labels from 1
NONE_TESTED = {name: data for name, data in recordings().items() if name.endswith(("_5.wav", "_49.wav"))}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            recordings() | {"seven_ann_3.wav": wav(tone())},
            "found recordings/seven_ann_3.wav, expected names like 7_jack",
        ),
        (recordings() | {"7_ann.wav": wav(tone())}, "found recordings/7_ann.wav, expected names like"),
        (recordings() | {"more/7_ann_3.wav": wav(tone())}, "found recordings/more/7_ann_3.wav, expected names"),
        (
            recordings() | {"7_ann_3.wav": b"ID3"},
            "7_ann_3.wav: found 3 bytes, which end before the samples, expected a WAV",
        ),
        (recordings() | {"7_ann_3.wav": wav(tone())[:-9]}, "7_ann_3.wav: found 791 bytes of samples, expected 800"),
        (recordings() | {"7_ann_3.wav": wav(tone(), channels=0)}, "7_ann_3.wav: found 0 channels"),
        (FEW, r"found no recordings/\*.wav of 0 to train on, expected recordings of 0 to 9 with numbers 5 or more"),
        (NONE_TESTED, r"found no recordings/\*.wav of 0, 1, 2, .* to test, .* with numbers 0 to 4"),
        ({"readme.txt": b""}, r"found no recordings/\*.wav of 0"),
    ],
)
def test_the_bad_recording_is_named(tmp_path: Path, files: Files, message: str) -> None:
    write(tmp_path, files)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "fsdd_recordings.zip"))


def test_a_zip_file_that_is_damaged_or_foreign_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path) / "fsdd_recordings.zip"
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[100] ^= 1
    for data, message in (
        (b"", "found File is not a zip file, expected a whole zip file"),
        (good[: len(good) // 2], "found File is not a zip file"),
        (bytes(damaged), "found Bad CRC-32 for file"),
        (wav(tone()), "found File is not a zip file"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=message) as caught:
            load(tmp_path)
        assert str(caught.value).startswith(str(path))


def test_a_name_is_read_once_and_hidden_files_never(tmp_path: Path) -> None:
    path = write(tmp_path, more={"recordings/.DS_Store": b"x", "__MACOSX/recordings/._0_ann_0.wav": b"x"})
    assert len(list(members(path / "fsdd_recordings.zip", "recordings"))) == 80
    write(tmp_path, more={"copy/recordings/3_ann_4.wav": b"x"})
    with pytest.raises(DataError, match=r"found two files recordings/3_ann_4.wav, expected one"):
        load(tmp_path)


def test_a_claim_of_a_huge_file_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddp_agent.data.readers.zip_members.LARGEST_BYTES", 1000)
    write(tmp_path, recordings() | {"3_ann_5.wav": bytes(1001)})
    with pytest.raises(DataError, match=r"3_ann_5.wav: found 1,001 bytes, expected a small file"):
        load(tmp_path)


def test_a_missing_file_is_named_with_where_it_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"found no fsdd_recordings.zip, and no folder fsdd .*dataset.download=true.*codeload.github"
    ):
        load(tmp_path)


# Downloads, from files.


def test_a_download_is_judged_by_the_recordings_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "source") / "fsdd_recordings.zip"
    expected = content_sha256(source, "recordings")
    published = replace(spoken_digits.RECORDINGS, url=source.as_uri(), sha256=expected)
    monkeypatch.setattr(spoken_digits, "RECORDINGS", published)
    write(source.parent, below="again/recordings/", more={"again/README.md": b"packed another day"})
    assert hashlib.sha256(source.read_bytes()).hexdigest() != expected
    assert load(tmp_path / "new", download=True).data.sha256 == load(tmp_path / "new").data.sha256
    write(source.parent, recordings() | {"3_ann_5.wav": wav(tone(9))})
    for foreign in (source.read_bytes(), b"<html>"):
        source.write_bytes(foreign)
        with pytest.raises(DataError, match="downloading fsdd failed"):
            load(tmp_path / "newer", download=True)
    assert [path.name for path in (tmp_path / "newer" / "fsdd").iterdir()] == [".download.lock"]


# Whole runs.


def test_speakers_may_be_dealt_to_ranks(ranks2: RankPool, tmp_path: Path) -> None:
    typed = ("dataset=spoken_digits", "dataset.seconds=0.05", "model=speech_cnn", "slicing=by_group", "max_steps=2")
    cfg = mode("local_sgd", *typed, "global_batch_size=8", f"data_root={write(tmp_path / 'data')}")
    summary = ranks2.run(run, *cfg, str(tmp_path / "run"))[0]
    assert isinstance(summary, dict), summary
    assert summary["shard_sizes"] == [20, 20] and summary["metric_name"] == "accuracy"


# The real file.


@pytest.mark.data
def test_the_published_recordings(data_root: Path) -> None:
    train, test, speakers = dataset(data_root, seconds=1.0).read()
    assert speakers == ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    for part, each in ((train, 45), (test, 5)):
        of_both = part.digits * 6 + part.speakers
        assert of_both.bincount().tolist() == [each] * 60
    path = next(data_root.glob("**/fsdd_recordings.zip"))
    assert content_sha256(path, "recordings") == spoken_digits.RECORDINGS.sha256
