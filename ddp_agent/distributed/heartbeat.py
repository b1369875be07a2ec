"""Heartbeats that ranks leave in their store, and conclusions from those that others left, or did not."""

import json
import logging
import os
import sys
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ddp_agent.distributed.failure_report import STEPS, Failure, in_range
from ddp_agent.distributed.progress import Activity, Report
from ddp_agent.distributed.run_secret import SignedStore
from ddp_agent.distributed.standstill import AwakeClock, Unchanged, long_s, stuck_rank
from ddp_agent.distributed.stop_signals import grace_s

_log = logging.getLogger(__name__)

SILENCE_S = 3.0  # without a heartbeat a rank counts as lost while a failure is searched; else `timeout_s`
MARGIN_S = 5.0  # before the launcher kills ranks that it asked to stop: a rank that still stands still is named
LONGEST_PATH = 512
PROCESSES = range(1, 2**31)


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """One rank's latest heartbeat. `promise`: it begins no step beyond this one until all agreed where to stop."""

    count: int
    promise: int | None
    report: Report

    def to_json(self) -> str:
        """Return the heartbeat as a JSON list. An over-long path keeps its end."""
        report = asdict(self.report) | {"path": self.report.path[-LONGEST_PATH:]}
        return json.dumps([self.count, self.promise, *report.values()])

    @classmethod
    def from_json(cls, text: str) -> "Heartbeat":
        """Return the heartbeat whose `to_json` is `text`. Raise ValueError for anything else."""
        found = json.loads(text)
        if not isinstance(found, list) or len(found) != 2 + len(fields(Report)):
            raise ValueError("found no heartbeat")
        count, promise, step, launched, moves, activity, waiting, path = found
        if type(waiting) is not bool or type(path) is not str or len(path) > LONGEST_PATH:
            raise ValueError("found no heartbeat")
        report = Report(
            step=in_range(step, STEPS, "step"),
            launched=in_range(launched, STEPS, "launched"),
            moves=in_range(moves, STEPS, "moves"),
            activity=Activity(activity),
            waiting=waiting,
            path=path,
        )
        promise = None if promise is None else in_range(promise, STEPS, "promise")
        return cls(count=in_range(count, STEPS, "count"), promise=promise, report=report)


class Heartbeats:
    """One rank's heartbeats and its view of those of others. Making it sends the first one.

    Rank 0 watches all ranks and they watch rank 0: n ranks cost 2 n requests per round.
    """

    def __init__(self, store: SignedStore, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size, self._count = store, rank, world_size, 0
        self._watched = [other for other in (range(world_size) if rank == 0 else [0]) if other != rank]
        unseen = Heartbeat(count=0, promise=None, report=Report())
        self._latest = dict.fromkeys(self._watched, unseen)  # the last genuine one: anybody may overwrite a value
        self._clock, self._silence, self._standstill = AwakeClock(), Unchanged[int](), Unchanged[int]()
        self._silent_s: dict[int, float] = {}
        self._stood_s: dict[int, float] = {}
        self._own = Report()
        self._warned = ""
        self._local_pids: dict[int, int] = {}  # by rank, of ranks in this process's namespace
        store.set(f"process/{rank}", f"{namespace()} {os.getpid()}")
        self.send(Report(), promise=None)

    def send(self, report: Report, promise: int | None) -> None:
        """Replace this rank's heartbeat in the store. Takes about 0.2 ms."""
        self._count += 1
        self._own = report
        heartbeat = Heartbeat(count=self._count, promise=promise, report=report)
        self._store.set(f"heartbeat/{self._rank}", heartbeat.to_json())

    def latest_promise(self) -> int | None:
        """Return the latest step that any rank has promised, or None before all ranks have promised."""
        promises = [heartbeat.promise if heartbeat else None for heartbeat in self._read(range(self._world_size))]
        known = [promise for promise in promises if promise is not None]
        return max(known) if len(known) == self._world_size else None

    def look(self) -> None:
        """Read the heartbeats of the watched ranks, for the conclusions below."""
        for rank, heartbeat in zip(self._watched, self._read(self._watched), strict=True):
            if heartbeat is not None and heartbeat.count > self._latest[rank].count:  # else somebody repeats an old one
                self._latest[rank] = heartbeat
        now = self._clock.tick()
        self._silent_s = self._silence.look(self._latest, now)
        self._stood_s = self._standstill.look(self._reports(), now)

    def lost(self, timeout_s: float, *, search: bool = False, asked_for_s: float | None = None) -> Failure | None:
        """Return the failure of a rank that is dead, silent or stuck. Call `look` before.

        `search`: something has failed, and the rank that caused it is searched. `asked_for_s`: for how long the run has
        been asked to stop. Near the end of the launcher's grace period nobody is waited for any more.
        """
        hurry = search or (asked_for_s is not None and asked_for_s > grace_s() - MARGIN_S)
        if (search or asked_for_s is not None) and (dead := self.dead()):
            return dead
        if silent := self.silent(SILENCE_S if hurry else timeout_s):
            return silent
        limit_s = min(SILENCE_S, timeout_s) if hurry and not search else timeout_s
        reports, patience_s = self._reports(), long_s(timeout_s)
        others_s = {rank: seconds for rank, seconds in self._stood_s.items() if rank != self._rank}
        stuck = stuck_rank(reports, others_s, limit_s, patience_s)
        if stuck is not None and stuck.over:
            return Failure.lost(stuck.rank, stuck.step, stuck.text, noticed_by=self._rank)
        stuck = stuck_rank(reports, self._stood_s, limit_s, patience_s)
        if stuck is not None and not stuck.over and self._rank == 0 and self._warned != stuck.place:
            self._warned = stuck.place
            _log.warning("rank %d: %s; it is given %.0f s for that", stuck.rank, stuck.text, patience_s)
        return None

    def silent(self, limit_s: float) -> Failure | None:
        """Return the failure of the watched rank that has been silent longest, if for longer than `limit_s`."""
        reports = self._reports()
        silent = {rank: s for rank, s in self._silent_s.items() if reports[rank].activity is not Activity.LEFT}
        rank = max(silent, key=lambda it: silent[it], default=None)
        if rank is None or silent[rank] <= limit_s:
            return None
        step = reports[rank].step
        text = f"no sign of life for {silent[rank]:.0f} s, last seen in step {step}"
        return Failure.lost(rank, step, text, noticed_by=self._rank)

    def dead(self) -> Failure | None:
        """Return the failure of a rank whose process would be visible to this one, but is gone."""
        if not self._local_pids:
            keys = [f"process/{rank}" for rank in range(self._world_size)]
            processes = enumerate(self._store.get_all(keys, Process.parse))
            own = namespace()
            self._local_pids = {rank: it.pid for rank, it in processes if it and it.namespace == own}
        for rank, pid in self._local_pids.items():
            if _dead(pid):
                (last,) = self._read([rank])
                if last and last.report.activity is Activity.LEFT:
                    continue
                step = last.report.step if last else 0
                text = f"died without a word, last seen in step {step}; torchrun tells by which signal"
                return Failure.lost(rank, step, text, noticed_by=self._rank)
        return None

    def _read(self, ranks: Iterable[int]) -> list[Heartbeat | None]:
        return self._store.get_all([f"heartbeat/{rank}" for rank in ranks], Heartbeat.from_json)

    def _reports(self) -> dict[int, Report]:
        return {rank: heartbeat.report for rank, heartbeat in self._latest.items()} | {self._rank: self._own}


@dataclass(frozen=True)
class Process:
    """A rank's process, where it can be seen."""

    namespace: str
    pid: int

    @classmethod
    def parse(cls, text: str) -> "Process":
        """Return the process of a text. Raise ValueError for anything else."""
        where, _, pid = text.rpartition(" ")
        return cls(where, in_range(int(pid), PROCESSES, "process id"))


def namespace() -> str:
    """Return a name that is equal for processes that see each other's ids, and unique where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def _dead(pid: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"  # a zombie, or about to vanish
