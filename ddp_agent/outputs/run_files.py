"""Paths of a run's files, and what they say about the state of the run."""

import fcntl
import os
import re
import socket
import stat
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ddp_agent.config.untrusted import kind_of, open_regular, plain, read_json_object

_HOLDER_BYTES = 400
_LIMIT_BYTES = 1 << 20
_FOLDERS = ("checkpoints", "tensorboard", ".hydra", "ema")
_FILES = re.compile(
    r"\.lock|(status|summary|attempts|job|model)\.json|metrics\.jsonl|model\.safetensors|sample\.txt"
    r"|((config|hydra|overrides)|multirun)\.yaml|train(\.rank\d+)?\.log|trace\.rank\d+\.json\.gz"
)


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
            return read_json_object(self.status, _LIMIT_BYTES, below=self.path)
        except OSError:
            return {}

    def obstacle(self) -> str | None:
        """Return which name of a run's file or folder stands for something else; None if there is none.

        A run that wrote through a link would change another run's files, and one that opened a FIFO would wait forever.
        """
        try:
            entries = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(self.path)}
        except FileNotFoundError:
            return None
        for name, mode in sorted(entries.items()):
            if name in _FOLDERS and not stat.S_ISDIR(mode):
                return f"{name} in it is {kind_of(mode)}, expected a folder of the run's own"
            if _FILES.fullmatch(name) and not stat.S_ISREG(mode):
                return f"{name} in it is {kind_of(mode)}, expected a file of the run's own"
        return None

    def state(self) -> dict[str, Any]:
        """Return the content of `status`. A run that says "running" and that no process runs has "died".

        Where that cannot be known from this machine, it is "unknown". `reason` then has the time of the last sign of
        life.
        """
        status = self.read_status()
        if status.get("status") != "running" or (held := self.is_held()):
            return status
        where = self._holder().partition(", boot ")[0] or "its process"
        if held is None:
            return {**status, "status": "unknown", "reason": f"run by {where}; last sign of life {self._last_sign()}"}
        return {**status, "status": "died", "reason": f"{where} is gone; last sign of life {self._last_sign()}"}

    def is_held(self) -> bool | None:
        """Return whether a process holds the lock; None if that process may be on a machine that shares no locks."""
        try:
            with open_regular(self.lock, _LIMIT_BYTES, below=self.path) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks, or no lock of a run
            return None
        host, boot = this_machine()
        where, _, its_boot = self._holder().partition(", boot ")
        return False if where.endswith(f" {host}") or (boot and boot == its_boot) else None

    def _holder(self) -> str:
        """Return the words that the run's process wrote into the lock."""
        with suppress(OSError), open_regular(self.lock, _LIMIT_BYTES, below=self.path) as lock:
            return plain(lock.read(_HOLDER_BYTES).decode(errors="replace"))
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
