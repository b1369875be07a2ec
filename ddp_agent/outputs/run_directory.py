"""The folder of a run: a lock against a second writer, the summary and the status."""

import fcntl
import itertools
import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Any, Self

from ddp_agent.config.command_line import override
from ddp_agent.config.untrusted import UnusableFileError, plain, walk
from ddp_agent.errors import ConfigError, LostDirectoryError
from ddp_agent.outputs.files import to_json, write_atomically
from ddp_agent.outputs.run_files import RunFiles, this_machine
from ddp_agent.outputs.run_status import State, replace_status, write_status

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
        self._place = (0, 0)  # device and inode of the folder that was claimed
        if rank == 0:
            self._claim(restart)

    def holds_run(self) -> bool:
        """Return whether a run has begun here."""
        return self.metrics.exists() or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`. Raises LostDirectoryError if the folder is not the one that was claimed."""
        if problem := self.problem():
            raise LostDirectoryError(problem)
        write_atomically(self.summary, to_json(summary, indent=2) + "\n")

    def write_finished(self, step: int) -> None:
        """Write that the run finished. Raises OSError, unlike `write_status`: nothing else would say so."""
        replace_status(self, "finished", None, self.rank, step)

    def problem(self) -> str:
        """Return on rank 0 what happened to the folder since it was claimed, or an empty text. Costs three `stat`.

        Files that were deleted from the folder are no problem: whoever writes them makes them again.
        """
        if self._lock is None:
            return ""
        try:
            found = os.stat(self.path)
        except OSError as error:
            return f"{self.path}: {self._whereabouts()} while the run was in it ({error.strerror})"
        if (found.st_dev, found.st_ino) != self._place:
            return f"{self.path}: {self._whereabouts()} while the run was in it, and another folder is in its place"
        return self._lock_again()

    def relocate(self, path: Path | None = None) -> Path:
        """Go on in a new folder beside the one that was lost. Other ranks than 0 are given its `path`.

        Raises OSError if none can be made.
        """
        if path is None:
            self.close()
            path = _new_folder_beside(self.path)
            self.path = path
            self._claim(restart=False)
        self.path = path
        return path

    def write_status(
        self, state: State, reason: str | None = None, rank: int | None = None, step: int | None = None
    ) -> None:
        """Write `status.json`, unless a failure of this attempt is there: failures that follow are caused by it.

        An OSError is logged and not raised, because this is called while a run is dying.
        """
        if problem := self.problem():  # the folder in its place may be another run's
            _log.warning("the status is not written: %s", problem)
        else:
            write_status(self, state, reason, self.rank if rank is None else rank, step)

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
                f"or continue that run with {override('resume', self.path)}"
            )
        found = os.stat(self.path)
        self._place = (found.st_dev, found.st_ino)
        self._remove_unfinished()

    def _whereabouts(self) -> str:
        """Return whether the folder was moved or deleted, as far as Linux tells."""
        where = ""
        with suppress(OSError):
            where = os.readlink(f"/proc/self/fd/{self._lock}")
        if where.endswith(f"/{self.lock.name}") and Path(where).parent != self.path:
            return f"moved to {Path(where).parent}"
        return "deleted, moved or unmounted"

    def _lock_again(self) -> str:
        """Make the lock's file again if somebody deleted it. Return the problem if another run has done so before."""
        assert self._lock is not None
        with suppress(FileNotFoundError):
            return "" if os.path.samestat(os.lstat(self.lock), os.fstat(self._lock)) else self._taken()
        _log.warning("%s: deleted while the run holds it; made again", self.lock)
        self.close()
        try:
            self._lock_out_others()
        except ConfigError:
            return self._taken()
        except OSError as error:
            return f"{self.lock}: {error.strerror}"
        return ""

    def _taken(self) -> str:
        return f"{self.path}: another run has taken it while this one was in it"

    def _remove_unfinished(self) -> None:
        """Delete the temporary files of processes that were killed. Saving deletes those of checkpoints."""
        with suppress(UnusableFileError):  # more files than anybody waits for
            for folder, _, files in walk(self.path):
                for name in filter(_TEMPORARY.fullmatch, files):
                    with suppress(OSError):
                        (folder / name).unlink()

    def _lock_out_others(self) -> None:
        self._lock = lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        _locks_held.add(lock)
        try:
            _lock_exclusively(lock)
        except BlockingIOError:
            holder = plain(os.pread(lock, 200, 0).decode(errors="replace").partition(", boot")[0])
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


def _new_folder_beside(path: Path) -> Path:
    """Make a folder whose name tells where it comes from; in the folder for temporary files if there is no other."""
    for number in itertools.count(1):
        beside = path.with_name(f"{path.name}-rescued{f'-{number}' if number > 1 else ''}")
        try:
            beside.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            break
        return beside
    return Path(mkdtemp(prefix=f"{path.name[:50]}-rescued-"))
