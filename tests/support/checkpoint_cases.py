"""Checkpoints whose content depends on step and rank, and ways to damage them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddp_agent.checkpoint import loading, saving
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.process_group_comm import world_comm

FINGERPRINT = {"model": {"name": "MLP", "hidden": [8]}, "sync": {"name": "DiLoCo"}, "parameters": 99}
State = dict[str, Any]


def state_at(step: int, rank: int = 0) -> State:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {"step": step, "weights": torch.randn(50, generator=generator), "rank": rank}


def save(directory: Path, step: int, *, keep: int = 10, comm: Comm | None = None, **changes: Any) -> Path:
    comm = comm or world_comm()
    arguments: dict[str, Any] = {
        "fingerprint": FINGERPRINT,
        "details": {"mode": "DiLoCo"},
        "keep": keep,
    } | changes
    return saving.save(directory, step, state_at(step, comm.rank), comm=comm, **arguments)


def load(directory: Path, fingerprint: State = FINGERPRINT) -> tuple[int, State] | None:
    return loading.load(directory, comm=world_comm(), fingerprint=fingerprint)


def is_state_of(loaded: tuple[int, State] | None, step: int, rank: int = 0) -> bool:
    return loaded is not None and loaded[0] == step and same(loaded[1], state_at(step, rank))


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right)  # tells 0.0 from -0.0


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def content_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class Payload:
    """An object that makes a directory when it is unpickled without restrictions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def write_another_format(path: Path) -> None:
    path.write_text("step,loss\n1,0.5\n")
