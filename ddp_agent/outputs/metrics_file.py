"""`metrics.jsonl`: one flat JSON object per logged step."""

import errno
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddp_agent.config.untrusted import json_value, lines, no_link
from ddp_agent.errors import DataError
from ddp_agent.outputs.files import to_json, write_atomically

Record = dict[str, Any]
_LIMIT_BYTES = 4 << 30  # 10 million records

_log = logging.getLogger(__name__)


def read_metrics(path: Path, last_step: int) -> list[Record]:
    """Return the records up to `last_step`. Lines that were cut short, or that no run wrote, are skipped.

    Raises DataError for a file that is there and cannot be read: the run that continues would write over it.
    """
    records = []
    try:
        for line in lines(path, _LIMIT_BYTES, below=path.parent):
            with suppress(ValueError):
                record = json_value(line)
                if _is_record(record) and record["step"] <= last_step:
                    records.append(record)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; repair it, or remove it to continue without its records") from error
    return records


def _is_record(value: Any) -> bool:
    """Return whether `value` has only numbers and nulls, and a step, times and bytes that a graph's axes can show."""
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    if not all(number is None or type(number) in (int, float) for number in value.values()):
        return False
    axes = [value["step"], value.get("unix_s"), value.get("train_s", 0.0), value.get("payload_bytes", 0)]
    return all(number is not None and 0 <= number < 1e15 for number in axes)


class MetricsFile:
    """Writer of `metrics.jsonl`, one object per step: a step that is logged and evaluated has both in one line.

    `put` returns after the operating system has the line, so that a killed process loses nothing and a reader finds
    whole objects at any time. Therefore the second record of a step rewrites the last line in place, for which
    `tail -f` shows the rest of a line. An append-only file would have to keep back the first record until the step
    is over, or leave its line open.
    """

    def __init__(self, path: Path, history: Sequence[Record]) -> None:
        self.path = path
        write_atomically(path, b"".join(map(_line, history)).decode())
        self._file = open(path, "r+b", buffering=0, opener=no_link)  # noqa: SIM115 (a buffer would retry, and fail, at exit)
        self._last: Record = history[-1] if history else {}
        self._end = path.stat().st_size
        self._last_start = self._end - len(_line(self._last))

    def put(self, record: Record) -> None:
        """Write a line, or rewrite the last one if it is of the same step.

        Raise OSError if it could not be written whole. The next line then takes its place.
        """
        if (size := os.fstat(self._file.fileno()).st_size) != self._end:
            self._continue_at(size)
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

    def is_in_place(self) -> bool:
        """Return False if somebody deleted, moved or replaced the file. Costs 2 µs."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def move_to(self, path: Path) -> None:
        """Go on in a new file at `path`, with all lines. Raises OSError if it cannot be written."""
        written = os.pread(self._file.fileno(), self._end, 0)
        write_atomically(path, written.decode(errors="replace"))
        moved = open(path, "r+b", buffering=0, opener=no_link)  # noqa: SIM115
        self._file.close()
        self.path, self._file = path, moved

    def close(self) -> None:
        self._file.close()

    def _continue_at(self, size: int) -> None:
        """Continue behind the content that somebody else made of the file, instead of leaving a hole in it."""
        _log.warning("%s: changed by somebody else, from %d to %d bytes", self.path, self._end, size)
        if size and os.pread(self._file.fileno(), 1, size - 1) != b"\n":
            size += os.pwrite(self._file.fileno(), b"\n", size)
        self._last, self._last_start, self._end = {}, size, size


def _line(record: Record) -> bytes:
    return to_json(record).encode() + b"\n"
