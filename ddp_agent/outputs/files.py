"""JSON and atomic file writes."""

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
    """Return standard JSON. It has no NaN and no infinity: they become null. Scalar tensors become numbers."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if callable(item := getattr(value, "item", None)):
        return _plain(item())
    return str(value)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that readers see the old file or the new one, also after a crash, and never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file that takes the place of `path` when the body has written it.

    The content reaches the disk before the name does. After an exception the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes its files readable by their owner alone, whatever the umask
        fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Return when a file's content, or a folder's names, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
