"""Records of a run as they are read: lines of metrics.jsonl, and TensorBoard's events."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from records import Records
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

SUMMARY = {"steps": 30, "test_metric": 0.9, "train_s": 2.5, "target": 0.99, "time_to_target_s": None}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def tensorboard(path: Path) -> Any:
    return read_events(path / "tensorboard")


def read_events(path: Path) -> Any:
    reader = EventAccumulator(str(path), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    return reader.Reload()


def series(reader: Any, tag: str) -> list[tuple[int, Any]]:
    return [(event.step, pytest.approx(event.value)) for event in reader.Scalars(tag)]


def text(reader: Any, tag: str) -> str:
    event = reader.Tensors(f"{tag}/text_summary")[-1]
    return str(event.tensor_proto.string_val[0].decode())


def run_steps(tracker: Records, first: int, last: int, model: nn.Module) -> None:
    """Five seconds a step, 40 MB a step; logged every step, evaluated every second one."""
    for step in range(first, last + 1):
        with torch.no_grad():
            next(model.parameters()).fill_(step)
        tracker.log(step, {"train_loss": 1 / step})
        if step % 2 == 0:
            values = {"test_accuracy": step / 100, "test_loss": 2 / step}
            tracker.evaluation(step, values, train_s=5.0 * step, payload_bytes=40_000_000 * step, model=model)
            tracker.board.text("sample", f"after {step}", step)


@contextmanager
def disk_full_beyond(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: a write that would is cut short, the next fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
