"""Single words: tiny folders in both published layouts, and the errors for bad ones."""

import csv
import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import node
from rank_pool import RankPool
from resident import tensors
from run_states import same, states, training_state
from runs import mode, run
from wav_files import tone, wav

from ddp_agent.config.registry import build
from ddp_agent.data.datasets import speech_commands
from ddp_agent.data.loader import stream
from ddp_agent.data.readers.download import Published, unpacked
from ddp_agent.data.task import Task
from ddp_agent.errors import DataError

CPU = torch.device("cpu")
WORDS = ("cat", "dog", "zoom in")
PEOPLE = {"train": ("a1", "b2"), "validation": ("c3",), "test": ("d4", "e5")}


def load(data_root: Path, **values: Any) -> Task:
    settings = {"seconds": 0.05, **values}
    task: Task = build("dataset", node("dataset", "speech_commands", **settings), data_root=data_root).load()
    return task


# Folders.


def clips() -> dict[str, tuple[str, bytes]]:
    """Return the part and the content of each clip, by `<word>/<name>.wav`."""
    return {
        f"{word}/{person}_nohash_{take}.wav": (part, wav(tone(300 + 10 * place, seed=place), rate=8000))
        for part, people in PEOPLE.items()
        for person in people
        for place, word in enumerate(WORDS)
        for take in range(2)
    }


def write_google(root: Path) -> Path:
    for name, (_, data) in clips().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "_background_noise_").mkdir()
    (root / "_background_noise_" / "noise.wav").write_bytes(wav(tone()))
    (root / "LICENSE").write_text("free")
    for part, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        (root / name).write_text("".join(f"{clip}\n" for clip, (which, _) in clips().items() if which == part))
    return root


def write_tables(root: Path) -> Path:
    for part, table in (("train", "train.csv"), ("validation", "val.csv"), ("test", "test.csv")):
        rows = [(f"dataset/{name}", name.split("/")[0]) for name, (which, _) in clips().items() if which == part]
        root.mkdir(exist_ok=True)
        with (root / table).open("w", newline="") as file:
            csv.writer(file).writerows([("file", "class"), *rows])
    for name, (_, data) in clips().items():
        (root / "dataset" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "dataset" / name).write_bytes(data)
    return root


def test_both_layouts_are_read_by_their_lists(tmp_path: Path) -> None:
    tasks = load(write_google(tmp_path / "google")), load(write_tables(tmp_path / "tables"))
    for task in tasks:
        waves, labels, test_waves, test_labels = tensors(task)
        assert task.presentation.class_names == WORDS and (len(waves), len(test_waves)) == (12, 12)
        assert labels.bincount().tolist() == test_labels.bincount().tolist() == [4, 4, 4]
        for wave, label in zip(waves, labels.tolist(), strict=True):
            samples = tone(300 + 10 * label, seed=label)
            assert torch.equal(wave, torch.cat([samples, samples.new_zeros(400 - len(samples))]))
        assert task.data.groups is not None and task.data.groups.bincount().tolist() == [6, 6]
        assert task.data.labels is not None and torch.equal(task.data.labels, labels)
        assert task.data.input_shape == (1, 40, 4)


@pytest.mark.parametrize("place", ["speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02"])
def test_folders_are_found_where_others_unpack_them(tmp_path: Path, place: str) -> None:
    assert len(load(write_google(tmp_path / place).parents[place.count("/")]).data.train) == 12  # type: ignore[arg-type]


def test_words_may_be_chosen_and_the_validation_part_tested(tmp_path: Path) -> None:
    write_google(tmp_path)
    task = load(tmp_path, words=["zoom in", "cat"], tested="validation")
    assert task.presentation.class_names == ("cat", "zoom in")
    assert (len(task.data.train), len(task.data.test)) == (8, 4)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"train: found no 'cow' of dataset.words, expected some of cat, dog, zoom in"):
        load(tmp_path, words=["cow", "cat"])


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_streamed_is_what_would_be_resident(tmp_path: Path, workers: int) -> None:
    write_google(tmp_path)
    streamed, kept = load(tmp_path, workers=workers), load(tmp_path)
    assert streamed.data.workers == workers and streamed.data.input_shape == kept.data.input_shape
    for part, (waves, labels) in (("train", tensors(kept)[:2]), ("test", tensors(kept)[2:])):
        order = [list(range(7)), list(range(7, 12))]
        found = list(stream(getattr(streamed.data, part), order, device=CPU, workers=workers))
        assert torch.equal(torch.cat([batch[0] for batch in found]), waves)
        assert torch.equal(torch.cat([batch[1] for batch in found]), labels)
    assert streamed.data.labels is not None and torch.equal(streamed.data.labels, tensors(kept)[1])


def test_the_fingerprint_of_what_is_streamed_sees_files_and_not_their_place(tmp_path: Path) -> None:
    here, there = (load(write_google(tmp_path / place), workers=1).data.sha256 for place in ("a", "b"))
    assert here == there
    (tmp_path / "b" / "cat" / "a1_nohash_0.wav").write_bytes(wav(tone(9)))
    found = {here, load(tmp_path / "b", workers=1).data.sha256}
    found |= {load(tmp_path / "a", workers=1, **change).data.sha256 for change in ({"mels": 30}, {"rate": 4000})}
    assert len(found) == 4


def test_a_streamed_file_that_cannot_be_read_is_named_when_it_is_hit(tmp_path: Path) -> None:
    task = load(write_google(tmp_path), workers=1)
    bad = tmp_path / "cat" / "b2_nohash_0.wav"
    bad.write_bytes(bad.read_bytes()[:99])
    with pytest.raises(DataError, match=r"found 55 bytes of samples, expected 600; the file is cut off") as caught:
        list(stream(task.data.train, [[0], [2]], device=CPU, workers=1))
    assert str(caught.value).startswith(f"{bad}: ") and "\n" not in str(caught.value)
    bad.unlink()
    with pytest.raises(DataError, match=r"No such file or directory.*, expected a WAV file"):
        list(stream(task.data.train, [[2]], device=CPU, workers=1))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("testing_list.txt", "cat/z9_nohash_0.wav\n", r"line 1: found 'cat/z9_nohash_0.wav', but no such file"),
        ("testing_list.txt", "cat/d4_nohash_0.wav\n/etc/passwd\n", r"line 2: found '/etc/passwd', expected <word>/"),
        ("testing_list.txt", "cat/../../b/x.wav\n", r"line 1: found 'cat/../../b/x.wav', expected <word>/<name>.wav"),
        ("testing_list.txt", "file,class\n", r"line 1: found 'file,class', expected <word>/<name>.wav"),
        ("validation_list.txt", None, r"found .*No such file.*, expected lines of <word>/<name>.wav"),
        ("validation_list.txt", b"\xff\xfd", r"found .*can't decode.*, expected lines of"),
    ],
)
def test_a_list_that_is_damaged_or_foreign_is_named(
    tmp_path: Path, name: str, text: str | bytes | None, message: str
) -> None:
    path = write_google(tmp_path) / name
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found a first line of '', expected lines of dataset/<word>/<name>.wav,<word>"),
        ("dataset/cat/d4_nohash_0.wav,cat\n", "found a first line of 'dataset/cat/d4_nohash_0.wav,cat', expected"),
        ("file,class\ndataset/cat/d4_nohash_0.wav\n", "found not enough values"),
        ("file,class\ndataset/cat/d4_nohash_0.wav,dog\n", "found dataset/cat/d4_nohash_0.wav of class dog in line 2"),
        ("file,class\ndataset/cat/d4.wav,cat\n", "line 2: found 'dataset/cat/d4.wav', but no such file"),
    ],
)
def test_a_table_that_is_damaged_or_foreign_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write_tables(tmp_path / "tables") / "test.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "tables")
    assert str(caught.value).startswith(str(path))


def test_a_word_without_training_and_a_part_without_words_are_refused(tmp_path: Path) -> None:
    write_google(tmp_path)
    for path in (tmp_path / "dog").glob("[ab]*.wav"):
        path.unlink()
    with pytest.raises(DataError, match=r"test: found 'dog', expected only words that are trained on"):
        load(tmp_path)
    (tmp_path / "testing_list.txt").write_text("")
    with pytest.raises(DataError, match=r"test: found no recordings"):
        load(tmp_path)


def test_missing_folders_are_named_with_where_they_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"found no testing_list.txt or test.csv .*dataset.download=true, or take https://"
    ):
        load(tmp_path)


# Downloads, from files.


def test_googles_archive_is_downloaded_and_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "words.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(write_google(tmp_path / "source"), ".")
    published = Published(archive.name, archive.as_uri(), hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(speech_commands, "GOOGLE", published)
    assert len(load(tmp_path / "new", download=True).data.train) == 12  # type: ignore[arg-type]
    archive.unlink()
    assert len(load(tmp_path / "new", download=True).data.train) == 12  # type: ignore[arg-type]
    target = tmp_path / "new" / "speech_commands_v0.02"
    unpacked(published, target, most_bytes=10**6)  # as a rank does that looked a moment too early
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"speech_commands_v0.02", ".download.lock"}


def test_an_archive_that_leads_elsewhere_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "words.tar"
    with tarfile.open(archive, "w") as file:
        file.addfile(tarfile.TarInfo("../../evil.txt"))
    published = Published(archive.name, archive.as_uri(), hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(speech_commands, "GOOGLE", published)
    with pytest.raises(DataError, match=r"found '../../evil.txt', expected names that stay"):
        load(tmp_path / "new", download=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".download.lock"]


# Whole runs.


def in_the_rank(task: Task) -> Task:
    """Streamed without workers: beside this test's ranks each of them would import torch anew."""
    return replace(task, data=replace(task.data, workers=0))


def test_streamed_words_resume_bit_for_bit(ranks2: RankPool, tmp_path: Path) -> None:
    typed: tuple[str, ...] = ("dataset=speech_commands", "dataset.seconds=0.05", "dataset.workers=1")
    typed += ("model=speech_cnn", "global_batch_size=4", f"data_root={write_google(tmp_path / 'data')}")
    whole, part, rest = (tmp_path / name for name in ("whole", "part", "rest"))
    for folder, more in ((whole, "max_steps=8"), (part, "max_steps=3"), (rest, f"resume={part}")):
        summary = ranks2.run(run, *mode("local_sgd", *typed, more), str(folder), 0, in_the_rank)[0]
        assert isinstance(summary, dict), summary
    expected, found = (list(map(training_state, states(folder, 8))) for folder in (whole, rest))
    assert len(expected) == 2 and same(expected, found)
