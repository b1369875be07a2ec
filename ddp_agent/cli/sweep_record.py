"""Events that the jobs of a sweep report to its driver: lines of a file, since launchers run jobs in other processes.

A job on another machine cannot reach the file, and then the sweep shows less.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ddp_agent.outputs.units import human_seconds

_FILE = "DDP_AGENT_FAILURES"  # the file's path, for jobs
STARTED, ENDED, FAILED, DONE_BEFORE = "started", "ended", "failed", "done before"


@dataclass(frozen=True)
class SweepRecord:
    """Record of a sweep's jobs, one JSON object per event. `total`: the number of jobs, if it is known."""

    path: Path | None
    total: int | None = None

    @classmethod
    def begin(cls, path: Path, total: int | None) -> Self:
        """Begin a record, and let the jobs that are started from now on find it."""
        record = cls(path, total)
        os.environ[_FILE] = str(path)
        record.note("begun", total=total)
        return record

    @classmethod
    def of_this_job(cls) -> Self:
        """Return the record of the sweep that this process is a job of."""
        path = os.environ.get(_FILE)
        record = cls(Path(path) if path else None)
        total = next((event.get("total") for event in record.events("begun")), None)
        return cls(record.path, total)

    def note(self, kind: str, **facts: Any) -> None:
        """Add an event. A record that cannot be written loses it."""
        line = json.dumps({"event": kind, "at_s": time.monotonic(), **facts}) + "\n"
        if self.path is not None:
            with suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
                file.write(line)

    def events(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Yield the events of these kinds in the order in which they happened."""
        if self.path is None:
            return
        with suppress(OSError), open(self.path, encoding="utf-8") as file:
            for line in file:
                event = json.loads(line)
                if event["event"] in kinds:
                    yield event

    def progress(self, number: int) -> str:
        """Return the place of job `number` in the sweep and the time left, such as " (4 of 12, about 3 min left)"."""
        if not self.total:
            return ""
        place = f"{number + 1} of {self.total}"
        started, ended = list(self.events(STARTED)), list(self.events(ENDED))
        if not ended:
            return f" ({place})"
        left = self.total - len(ended) - sum(1 for _ in self.events(DONE_BEFORE))
        elapsed_s = time.monotonic() - started[0]["at_s"]  # jobs may run side by side
        return f" ({place}, about {human_seconds(elapsed_s / len(ended) * max(left, 1))} left)"
