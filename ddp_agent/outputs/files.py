"""JSON, atomic file writes, and the words for a disk that refuses them."""

import errno
import json
import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddp_agent.errors import DataError
from ddp_agent.outputs.log import log_to_file

_log = logging.getLogger(__name__)

# Errors of a disk, even where the error does not name the file; others come from sockets and processes, too.
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE, errno.ENAMETOOLONG}


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
        fsync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # the temporary name would mean nothing to anybody
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def fsync(path: Path) -> None:
    """Return when a file's content, or a folder's names, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors_explained() -> Iterator[None]:
    """Raise DataError for an OSError about a file. The log file keeps the traceback."""
    try:
        yield
    except OSError as error:
        if error.strerror is None or (error.filename is None and error.errno not in _OF_A_DISK):
            raise
        text = f"{error.filename or 'a file of this run'}: {error.strerror}"
        log_to_file(_log, text, traceback=True)
        raise DataError(text) from error
