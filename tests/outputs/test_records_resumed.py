"""Records of a resumed run read like those of a run that was never interrupted."""

import time
from pathlib import Path
from typing import Any

import pytest
from event_files import read_events, records, run_steps, series, small_model, tensorboard, text
from records import Records

from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.tensorboard import History


def interrupted_run(path: Path) -> list[dict[str, Any]]:
    """Ten steps, killed while the eleventh was being written."""
    with RunDirectory(path) as run:
        tracker = Records(run, "accuracy")
        model = small_model()
        tracker.begin(model, {})
        run_steps(tracker, 1, 10, model)
        tracker.close()
    lines = records(path)
    with run.metrics.open("a") as file:
        file.write('{"step": 11, "train_l')
    started_at(path, 1_000_000_000, b"\x07\x00\x00")
    return lines


def started_at(path: Path, unix_s: int, half_a_record: bytes = b"") -> None:
    """Dates the newest event file back: attempts are seconds apart, and readers go by the names."""
    newest = max((path / "tensorboard").iterdir())
    newest.with_name(f"events.out.tfevents.{unix_s}").write_bytes(newest.read_bytes() + half_a_record)
    newest.unlink()


def resume(source: Path, path: Path, first: int, last: int) -> None:
    with RunDirectory(path, restart=source == path) as run:
        tracker = Records(run, "accuracy", history=History.read(source, first - 1))
        model = small_model()
        tracker.begin(model, {})
        run_steps(tracker, first, last, model)
        tracker.close()


@pytest.mark.parametrize("same_directory", [True, False])
def test_a_run_resumed_twice_reads_like_one_that_was_never_interrupted(tmp_path: Path, same_directory: bool) -> None:
    before = interrupted_run(tmp_path / "a")
    second, third = ("a", "a") if same_directory else ("b", "c")
    resume(tmp_path / "a", tmp_path / second, 8, 12)
    assert records(tmp_path / second)[:7] == before[:7]
    started_at(tmp_path / second, 1_000_000_001)
    resume(tmp_path / second, tmp_path / third, 13, 14)
    lines, reader = records(tmp_path / third), tensorboard(tmp_path / third)
    assert [line["step"] for line in lines] == list(range(1, 15))
    replayed = reader.Scalars("train_loss")[:7]
    assert [event.wall_time for event in replayed] == [line["unix_s"] for line in before[:7]]
    assert series(reader, "train_loss") == [(step, 1 / step) for step in range(1, 15)]
    # 35 s and 280 MB at the checkpoint lie beyond its step, 7: a purge by step would have torn these two
    assert series(reader, "test_accuracy/by_seconds") == [(10 * i, 2 * i / 100) for i in range(1, 8)]
    assert series(reader, "test_accuracy/by_megabytes") == [(80 * i, 2 * i / 100) for i in range(1, 8)]
    assert [event.step for event in reader.Histograms("parameters/0.weight")] == list(range(2, 15, 2))
    assert [event.step for event in reader.Histograms("updates/0.weight")] == list(range(2, 15, 2))
    assert "Linear" in text(reader, "model")
    newest = read_events(max((tmp_path / third / "tensorboard").iterdir()))  # this reader purges no texts of old files
    assert [event.step for event in newest.Tensors("sample/text_summary")] == list(range(2, 15, 2))
    assert text(newest, "sample") == "    after 14"
    assert len(newest.Tensors("model/text_summary")) == 1


def test_a_run_resumed_elsewhere_stays_as_it_was(tmp_path: Path) -> None:
    interrupted_run(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    resume(tmp_path / "a", tmp_path / "b", 8, 12)
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before


def test_a_run_whose_records_are_gone_is_resumed_without_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    resume(tmp_path / "a", tmp_path / "b", 8, 9)
    assert [line["step"] for line in records(tmp_path / "b")] == [8, 9]
    assert series(tensorboard(tmp_path / "b"), "train_loss") == [(8, 1 / 8), (9, 1 / 9)]


def test_a_reader_that_watched_the_first_attempt_follows_the_second(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    reader = tensorboard(tmp_path)
    resume(tmp_path, tmp_path, 8, 8)
    reader.Reload()
    assert series(reader, "train_loss") == [(step, 1 / step) for step in range(1, 9)]


def test_a_restart_before_the_first_checkpoint_starts_over(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    with RunDirectory(tmp_path, restart=True) as run:
        tracker = Records(run, "accuracy", history=History.read(tmp_path, 0))
        tracker.log(1, {"train_loss": 5.0})
        tracker.close()
    assert [line["train_loss"] for line in records(tmp_path)] == [5.0]
    assert series(tensorboard(tmp_path), "train_loss") == [(1, 5.0)]


def test_an_evaluation_repeated_after_a_resume_stays_one_object(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    with RunDirectory(tmp_path, restart=True) as run:
        tracker = Records(run, "accuracy", history=History.read(tmp_path, 4))
        tracker.evaluation(4, {"test_accuracy": 1.0}, train_s=20.0, payload_bytes=0)
        tracker.close()
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 3, 4]
    assert (records(tmp_path)[-1]["test_accuracy"], records(tmp_path)[-1]["train_loss"]) == (1.0, 0.25)


@pytest.mark.parametrize("days", [-2, 2])
def test_a_clock_that_was_set_back_or_ahead_hides_nothing(
    days: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads the files of a run in the order of their names, which begin with a time."""
    interrupted_run(tmp_path)
    started_at(tmp_path, now := int(time.time()))
    clock = time.time
    for attempt, (first, last) in enumerate(((8, 12), (13, 14)), 1):
        monkeypatch.setattr(time, "time", lambda: clock() + (attempt % 2) * days * 86_400)  # noqa: B023
        resume(tmp_path, tmp_path, first, last)
        monkeypatch.setattr(time, "time", clock)
    names = sorted(file.name for file in (tmp_path / "tensorboard").iterdir())
    assert len(names) == 3 and names[0] == f"events.out.tfevents.{now}"
    assert series(tensorboard(tmp_path), "train_loss") == [(step, 1 / step) for step in range(1, 15)]
