"""The resources that a process holds, seen from outside."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_MB = 10  # that a process may grow by in the later part of its life


@dataclass(frozen=True)
class Held:
    megabytes: float
    files: int
    threads: int

    @classmethod
    def by(cls, pid: int | None) -> "list[Held]":
        """Empty when the process has ended."""
        process = Path(f"/proc/{pid}")
        try:
            told = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            files = len(list((process / "fd").iterdir()))
            return [cls(int(told["VmRSS"].split()[0]) / 1e3, files, int(told["Threads"]))]
        except (OSError, KeyError):
            return []


def assert_level(early: Sequence[Held], late: Sequence[Held]) -> None:
    """Compares what was held at least, since a file may be open for a moment."""
    assert len(early) > 5 and len(late) > 5
    before, after = least(early), least(late)
    assert after.megabytes < before.megabytes + MOST_MB, (before, after)
    assert after.files <= before.files, (before, after)
    assert after.threads <= before.threads, (before, after)


def least(held: Sequence[Held]) -> Held:
    return Held(min(it.megabytes for it in held), min(it.files for it in held), min(it.threads for it in held))
