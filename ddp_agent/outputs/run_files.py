"""Paths of a run's files, and what they say about the state of the run."""

import fcntl
import json
import os
import socket
import stat
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

_HOLDER_BYTES = 400


class RunFiles:
    """The paths of a run directory's files, which need not exist. Reads nothing but the status and the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder with one folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        """One JSON object, written at the end."""
        return self.path / "summary.json"

    @property
    def status(self) -> Path:
        """State of the newest attempt."""
        return self.path / "status.json"

    @property
    def lock(self) -> Path:
        """File that the run's rank 0 locks while it lives. Its content says where that process is."""
        return self.path / ".lock"

    @property
    def attempts(self) -> Path:
        """The steps at which attempts began."""
        return self.path / "attempts.json"

    @property
    def sample(self) -> Path:
        """Text that the final model made."""
        return self.path / "sample.txt"

    def log(self, rank: int) -> Path:
        """Return the path of a rank's log."""
        return self.path / ("train.log" if rank == 0 else f"train.rank{rank}.log")

    def read_status(self) -> dict[str, Any]:
        """Return the content of `status`. It is empty if the file is missing or damaged."""
        try:
            status = json.loads(self.status.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}

    def state(self) -> dict[str, Any]:
        """Return the content of `status`. A run that says "running" and that no process runs has "died".

        Where that cannot be known from this machine, it is "unknown". `reason` then has the time of the last sign of
        life.
        """
        status = self.read_status()
        if status.get("status") != "running" or (held := self.is_held()):
            return status
        where = self._holder() or "a process"
        if held is None:
            return {**status, "status": "unknown", "reason": f"run by {where}; last sign of life {self._last_sign()}"}
        return {**status, "status": "died", "reason": f"{where} is gone; last sign of life {self._last_sign()}"}

    def is_held(self) -> bool | None:
        """Return whether a process holds the lock; None if that process may be on a machine that shares no locks."""
        try:
            lock = os.open(self.lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(lock).st_mode):
                return None
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return None
        finally:
            os.close(lock)
        here = this_machine()
        return False if any(mark and mark in self._holder() for mark in here) else None

    def _holder(self) -> str:
        """Return the words that the run's process wrote into the lock."""
        with suppress(OSError):
            lock = os.open(self.lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(lock).st_mode):
                    text = os.pread(lock, _HOLDER_BYTES, 0).decode(errors="replace")
                    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
            finally:
                os.close(lock)
        return ""

    def _last_sign(self) -> str:
        newest = 0.0
        for path in (self.metrics, self.log(0), self.status):
            with suppress(OSError):
                newest = max(newest, path.lstat().st_mtime)
        return datetime.fromtimestamp(newest).isoformat(" ", "seconds") if newest else "unknown"


def this_machine() -> tuple[str, str]:
    """Return the host's name and the id of this boot of its kernel: containers have names of their own."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"on {socket.gethostname()}", boot
