"""Checkpoints and metrics of a run directory, to compare runs bit for bit."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_agent.outputs.metrics_file import read_metrics

TIMES = {"clock", "comm", "logged", "standing"}  # parts of a state that hold the seconds that a run took


def states(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """The state of every rank after a step."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("rank-*.pt"))]


def training_state(state: dict[str, Any]) -> dict[str, Any]:
    """All of a state except the seconds that the run took."""
    return {key: value for key, value in state.items() if key not in TIMES}


def same(one: Any, other: Any) -> bool:
    """Return whether two states are equal, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def recorded(run_dir: Path, key: str = "step") -> list[int]:
    """The steps at which `key` was measured."""
    return [record["step"] for record in read_metrics(run_dir / "metrics.jsonl", 99) if key in record]
