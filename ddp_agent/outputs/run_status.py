"""`status.json`: the state of a run and why it ended, written by its ranks or by whoever started them."""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ddp_agent.config.redaction import scrubbed
from ddp_agent.outputs.files import to_json, write_atomically
from ddp_agent.outputs.run_files import RunFiles

State = Literal["running", "finished", "preempted", "failed"]

_log = logging.getLogger(__name__)


def conclude(run_dir: Path, reason: str, rank: int | None = None, *, earlier: Mapping[str, Any] | None = None) -> None:
    """Write that a run failed if its processes ended without a word. For the process that started them.

    `earlier`: the status before they were started; if it is still there, they never claimed the directory. Does nothing
    if the run has ended with a status of its own, or if a process holds the directory.
    """
    files = RunFiles(run_dir)
    status = files.read_status()
    ended = status.get("status", "running") != "running" or status == earlier
    if run_dir.is_dir() and not ended and not files.is_held():
        write_status(files, "failed", reason, rank, status.get("step"))


def write_status(files: RunFiles, state: State, reason: str | None, rank: int | None, step: int | None) -> None:
    """Write the status. An OSError is logged and not raised, because this is called while a run is dying."""
    try:
        replace_status(files, state, reason, rank, step)
    except OSError as error:
        said = ", ".join(str(part) for part in (state, reason and scrubbed(reason)) if part)
        _log.warning("%s could not be written (%s); it would say: %s", files.status, error.strerror, said)


def replace_status(files: RunFiles, state: State, reason: str | None, rank: int | None, step: int | None) -> None:
    """Write the status, unless it is "failed": only a new attempt, which begins with "running", replaces that.

    Raises OSError. On a full disk the old status is overwritten.
    """
    status = {
        "status": state,
        "reason": reason and scrubbed(reason),
        "rank": rank,
        "step": step,
        "unix_s": round(time.time(), 3),
    }
    text = to_json(status, indent=2) + "\n"
    with _one_rank_at_a_time(files.path):
        if state == "running" or files.read_status().get("status") != "failed":
            try:
                write_atomically(files.status, text)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not files.status.exists():
                    raise
                _overwrite(files.status, text)


def _overwrite(path: Path, text: str) -> None:
    """Write `text` over an existing file: on a full disk the blocks that it has are all there is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        content = text.encode()
        if os.pwrite(descriptor, content, 0) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


@contextmanager
def _one_rank_at_a_time(path: Path) -> Iterator[None]:
    """Lock the status: one of several ranks that fail together must be the first. Rank 0 holds the run's lock."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
