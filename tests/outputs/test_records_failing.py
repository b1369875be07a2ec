"""No record can stop a training: full disks, errors of TensorBoard's writer."""

import logging
import threading
from pathlib import Path

import pytest
from event_files import SUMMARY, disk_full_beyond, records, small_model, tensorboard
from records import Records

from ddp_agent.outputs.run_directory import RunDirectory


def test_a_full_disk_costs_metrics_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # TensorBoard's writer dies in its thread
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        model = small_model()
        tracker.log(1, {"train_loss": 1.0})
        with disk_full_beyond(run.metrics.stat().st_size + 80):
            for step in range(2, 60):
                tracker.evaluation(step, {"train_loss": 2.0}, train_s=0.0, payload_bytes=0, model=model)
        tracker.log(60, {})  # shorter than the piece of the line that was cut off
        tracker.finish(SUMMARY, {})
    assert tracker.metrics.lost_lines == 58
    assert [line["step"] for line in records(tmp_path)] == [1, 60]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2
    assert any("metrics.jsonl" in w for w in warnings)
    assert any("tensorboard" in w for w in warnings)


def test_a_full_device_from_the_first_line_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunDirectory(tmp_path) as run, open("/dev/full", "r+b", buffering=0) as full:
        tracker = Records(run, "accuracy")
        tracker.metrics._file._file, real = full, tracker.metrics._file._file
        real.close()
        for step in range(3):
            tracker.log(step, {"train_loss": 1.0})
        tracker.close()
    assert tracker.metrics.lost_lines == 3
    assert "No space left on device" in caplog.text
    assert len(tensorboard(tmp_path).Scalars("train_loss")) == 3


def test_any_error_of_tensorboards_writer_ends_the_mirror_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise OSError("writer is gone")

    monkeypatch.setattr("ddp_agent.outputs.tensorboard.TensorBoardMirror.record", fails)
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        for step in range(3):
            tracker.log(step, {"train_loss": 1.0})
        tracker.finish(SUMMARY, {})
    assert len(records(tmp_path)) == 3
    assert caplog.text.count("writer is gone") == 1


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        tracker = Records(run, "accuracy")
        tracker.finish(SUMMARY, {})
        tracker.close()
