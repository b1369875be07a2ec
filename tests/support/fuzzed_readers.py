"""A reader of files, and the damage that is done to them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzzing
from hypothesis import strategies as st

from ddp_agent.errors import DataError

Damage = Callable[[bytes], "st.SearchStrategy[bytes]"]


@dataclass(frozen=True)
class Reader:
    victim: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    may_raise: tuple[type[Exception], ...] = ()
    damage: Damage = fuzzing.damaged
    before_reading: Callable[[Path], object] = field(default=lambda folder: None)
    """What somebody who means harm does after the damage: to make hashes right, say."""


def content(data: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data.encode() if isinstance(data, str) else data)


def one_file(
    name: str, data: bytes | str, read: Callable[[Path], object], error: type[Exception] = DataError, **more: Any
) -> Reader:
    return Reader(name, lambda path: content(data)(path / name), lambda path: read(path / name), (error,), **more)
