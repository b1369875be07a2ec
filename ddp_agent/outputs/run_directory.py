"""The folder of a run: a lock against a second writer, the summary and the status."""

import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ddp_agent.config.redaction import scrubbed
from ddp_agent.config.untrusted import plain, walk
from ddp_agent.errors import ConfigError
from ddp_agent.outputs.files import to_json, write_atomically
from ddp_agent.outputs.run_files import RunFiles, this_machine

State = Literal["running", "finished", "preempted", "failed"]

LOCK_TRIES, LOCK_RETRY_S = 5, 0.05

_log = logging.getLogger(__name__)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_locks_held: set[int] = set()


def _drop_inherited_locks() -> None:
    """Close the locks in a forked child: a data worker that outlives its rank would block a restart."""
    for descriptor in _locks_held:
        with suppress(OSError):
            os.close(descriptor)
    _locks_held.clear()


def _lock_exclusively(lock: int) -> None:
    """Lock a file. Raise BlockingIOError if a run holds it: a reader of its state does so for microseconds only."""
    for _ in range(LOCK_TRIES - 1):
        with suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(LOCK_RETRY_S)
    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


os.register_at_fork(after_in_child=_drop_inherited_locks)


class RunDirectory(RunFiles):
    """A run's folder. Rank 0 creates it and locks it until `close`, exit or crash; other ranks only know the paths.

    `restart`: this is another attempt at the run that is already there, or a continuation of it. Raises ConfigError if
    the folder cannot be written, is in use, or holds another run.
    """

    def __init__(self, path: Path, *, rank: int = 0, restart: bool = False) -> None:
        super().__init__(path.absolute())
        self.rank = rank
        self._lock: int | None = None
        if rank == 0:
            self._claim(restart)

    def holds_run(self) -> bool:
        """Return whether a run has begun here."""
        return self.metrics.exists() or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        write_atomically(self.summary, to_json(summary, indent=2) + "\n")

    def write_status(
        self, state: State, reason: str | None = None, rank: int | None = None, step: int | None = None
    ) -> None:
        """Write `status.json`, unless a failure of this attempt is there: failures that follow are caused by it.

        An OSError is logged and not raised, because this is called while a run is dying.
        """
        _write_status(self, state, reason, self.rank if rank is None else rank, step)

    def close(self) -> None:
        """Release the lock. The end of the process releases it, too."""
        if self._lock in _locks_held:  # in a forked child the number may be that of another file by now
            _locks_held.discard(self._lock)
            os.close(self._lock)
        self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _claim(self, restart: bool) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if obstacle := self.obstacle():
                raise ConfigError(f"hydra.run.dir={self.path}: {obstacle}; remove it, or choose a new directory")
            self._lock_out_others()
        except OSError as error:
            self.close()
            reason = "it is a file" if self.path.is_file() else error.strerror
            raise ConfigError(
                f"hydra.run.dir={self.path}: cannot be written ({reason}); choose a directory that can"
            ) from error
        if self.holds_run() and not restart:
            self.close()
            raise ConfigError(
                f"hydra.run.dir={self.path}: holds a run already; choose a new directory, "
                f"or continue that run with resume={self.path}"
            )
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Delete the temporary files of processes that were killed. Saving deletes those of checkpoints."""
        for folder, _, files in walk(self.path):
            for name in files:
                if _TEMPORARY.fullmatch(name):
                    with suppress(OSError):
                        (folder / name).unlink()

    def _lock_out_others(self) -> None:
        self._lock = lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        _locks_held.add(lock)
        try:
            _lock_exclusively(lock)
        except BlockingIOError:
            holder = plain(os.pread(lock, 200, 0).decode(errors="replace").strip())
            self.close()
            raise ConfigError(
                f"hydra.run.dir={self.path}: in use by another run ({holder}); "
                "wait for it to end, or choose a new directory"
            ) from None
        except OSError as error:  # some network file systems have no locks
            _log.warning("%s cannot be locked (%s): a second run in it will not be refused", self.path, error.strerror)
        os.ftruncate(lock, 0)
        host, boot = this_machine()
        os.pwrite(lock, f"pid {os.getpid()} {host}, boot {boot}".encode(), 0)

    def reason(self) -> str | None:
        """Return why the attempt before this one ended; None if it left no reason."""
        reason = self.read_status().get("reason")
        return plain(reason, 1000) if isinstance(reason, str) else None


def conclude(run_dir: Path, reason: str, rank: int | None = None, *, earlier: Mapping[str, Any] | None = None) -> None:
    """Write that a run failed if its processes ended without a word. For the process that started them.

    `earlier`: the status before they were started; if it is still there, they never claimed the directory. Does nothing
    if the run has ended with a status of its own, or if a process holds the directory.
    """
    files = RunFiles(run_dir)
    status = files.read_status()
    ended = status.get("status", "running") != "running" or status == earlier
    if run_dir.is_dir() and not ended and not files.is_held():
        _write_status(files, "failed", reason, rank, status.get("step"))


def _write_status(files: RunFiles, state: State, reason: str | None, rank: int | None, step: int | None) -> None:
    status = {
        "status": state,
        "reason": reason and scrubbed(reason),
        "rank": rank,
        "step": step,
        "unix_s": round(time.time(), 3),
    }
    text = to_json(status, indent=2) + "\n"
    try:
        with _one_rank_at_a_time(files.path):
            if state == "running" or files.read_status().get("status") != "failed":
                try:
                    write_atomically(files.status, text)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    _overwrite(files.status, text)
    except OSError as error:
        _log.warning("%s could not be written (%s); it would say: %s", files.status, error.strerror, status)


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
