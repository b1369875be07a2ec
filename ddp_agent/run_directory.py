"""The folder a run leaves behind: who may write into it, where things lie, and JSON that is always whole."""

import errno
import fcntl
import json
import logging
import math
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ddp_agent.errors import ConfigError
from ddp_agent.redaction import scrubbed

Record = dict[str, Any]
State = Literal["running", "finished", "preempted", "failed"]

_log = logging.getLogger(__name__)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_locks_held: set[int] = set()


def _drop_inherited_locks() -> None:
    """A forked child shares its parent's flock: a data worker outliving its rank would block a restart."""
    for descriptor in _locks_held:
        with suppress(OSError):
            os.close(descriptor)
    _locks_held.clear()


os.register_at_fork(after_in_child=_drop_inherited_locks)


def to_json(value: Any, indent: int | None = None) -> str:
    """Standard JSON: NaN and infinity, which it cannot say, become null; scalar tensors become numbers."""
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
    """Readers, and whoever comes after a crash, see the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_directory(path.parent)


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_metrics(path: Path, last_step: int) -> list[Record]:
    """The lines up to `last_step` that are whole: one that was cut short, or that no run wrote, is skipped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_record(record) and record["step"] <= last_step:
            records.append(record)
    return records


def _is_record(value: Any) -> bool:
    """Numbers and nulls by name; a step, and times and bytes that a graph can have as its axes."""
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    if not all(number is None or (type(number) in (int, float) and _fits_a_float(number)) for number in value.values()):
        return False
    axes = [value["step"], value.get("unix_s"), value.get("train_s", 0.0), value.get("payload_bytes", 0)]
    return all(number is not None and 0 <= number < 1e15 for number in axes)


def _fits_a_float(number: float) -> bool:
    return abs(number) <= sys.float_info.max


class MetricsFile:
    """Every line is on its way to the disk when `put` returns. A step that is put twice stays one object."""

    def __init__(self, path: Path, history: Sequence[Record]) -> None:
        self.path = path
        write_atomically(path, b"".join(map(_line, history)).decode())
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 (a buffer would retry, and fail, at exit)
        self._last: Record = history[-1] if history else {}
        self._end = path.stat().st_size
        self._last_start = self._end - len(_line(self._last))

    def put(self, record: Record) -> None:
        """Raises OSError when the line could not be written whole; the next line then takes its place."""
        again = record["step"] == self._last.get("step")
        start = self._last_start if again else self._end
        record = {**self._last, **record} if again else record
        line = _line(record)
        if os.pwrite(self._file.fileno(), line, start) < len(line):
            self._file.truncate(start)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if start + len(line) < self._end:
            self._file.truncate(start + len(line))
        self._last, self._last_start, self._end = record, start, start + len(line)

    def close(self) -> None:
        self._file.close()


def _line(record: Record) -> bytes:
    return to_json(record).encode() + b"\n"


class RunDirectory:
    """Rank 0 creates the directory and locks it until `close`, exit or crash; the others only know the paths.

    `restart` says that this is another attempt at, or a continuation of, the run that is already there.
    Raises ConfigError when the directory cannot be written, is in use, or holds another run.
    """

    def __init__(self, path: Path, *, rank: int = 0, restart: bool = False) -> None:
        self.path = path.absolute()
        self.rank = rank
        self._lock: int | None = None
        if rank == 0:
            self._claim(restart)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def sample(self) -> Path:
        return self.path / "sample.txt"

    def log(self, rank: int) -> Path:
        return self.path / ("train.log" if rank == 0 else f"train.rank{rank}.log")

    def holds_run(self) -> bool:
        return self.metrics.exists() or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_atomically(self.summary, to_json(summary, indent=2) + "\n")

    def write_status(
        self, state: State, reason: str | None = None, rank: int | None = None, step: int | None = None
    ) -> None:
        """The first failure of an attempt stands: what the other ranks report after it is its echo.

        Called while a run is dying, so a status that cannot be written is logged, not raised.
        """
        status = {
            "status": state,
            "reason": reason and scrubbed(reason),
            "rank": self.rank if rank is None else rank,
            "step": step,
            "unix_s": round(time.time(), 3),
        }
        try:
            with self._one_rank_at_a_time():
                if state == "running" or self._read_status().get("status") != "failed":
                    write_atomically(self.status, to_json(status, indent=2) + "\n")
        except OSError as error:
            _log.warning("%s could not be written (%s); it would say: %s", self.status, error.strerror, status)

    def close(self) -> None:
        """Lets another run use the directory; the process's exit does it too."""
        if self._lock in _locks_held:  # not so in a forked child, where the number may be another file by now
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
        """What processes that were killed left of files that they were writing; those of checkpoints go elsewhere."""
        for path in self.path.rglob(".*.tmp"):
            if _TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()

    def _lock_out_others(self) -> None:
        self._lock = lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        _locks_held.add(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
            self.close()
            raise ConfigError(
                f"hydra.run.dir={self.path}: in use by another run ({holder}); "
                "wait for it to end, or choose a new directory"
            ) from None
        except OSError as error:  # some network file systems have no locks
            _log.warning("%s cannot be locked (%s): nothing keeps a second run out", self.path, error.strerror)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def reason(self) -> str | None:
        """Why the attempt before this one ended, as far as it could tell."""
        reason = self._read_status().get("reason")
        return reason if isinstance(reason, str) else None

    def _read_status(self) -> Record:
        try:
            status = json.loads(self.status.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}

    @contextmanager
    def _one_rank_at_a_time(self) -> Iterator[None]:
        """Ranks that fail together must not both find that nobody has yet. (The run's lock is rank 0's.)"""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
