"""Meetings of replicas: all that are there do one thing, and its result is everybody's or nobody's.

    ask         who is there? The lighthouse waits for all that are alive, and those that are not are left out
    connect     when these are not the ranks of the last meeting, or a collective of theirs has failed
    work        changes state in place; a copy was kept
    vote        the store decides once: kept, when everybody has the whole result, or else undone, and all begin again
    admit       after a synchronisation: who asked to join is sent the state that was just kept

A replica that dies in any of these is missed by the vote at the latest, so no survivor keeps a result that another
lacks. One that was only slow or cut off finds that the others have met without it, and joins as if it were new.
"""

import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch.distributed import DistError

from ddp_agent.distributed.comm import Comm, CommError
from ddp_agent.distributed.replica_group import Participant, Purpose
from ddp_agent.distributed.torchrun_env import Replica
from ddp_agent.elastic.comm import ElasticComm
from ddp_agent.elastic.membership import Event, Membership, Seat
from ddp_agent.errors import ConfigError, CutOffError

ADMITTING = ("start", "sync")
REDUCING = ("sync", "flush")  # where the mode's reducer works
START_POLL_S = 0.1
FORGET_AFTER = 2  # meetings

T = TypeVar("T")

_log = logging.getLogger(__name__)


class OvertakenError(Exception):
    """The others met without this replica, which they thought was lost: `begin` again."""


class OverError(Exception):
    """The others have finished the run."""


@dataclass(frozen=True)
class Change:
    """Who trains from now on, and who no longer does. Numbers of replicas, and of steps."""

    step: int
    members: list[int]
    lost: dict[int, int]  # and where each was last seen
    joined: list[int]

    def __str__(self) -> str:
        told = [f"replica {number} was lost, last seen in step {step}" for number, step in self.lost.items()]
        told += [f"replica {number} has joined" for number in self.joined]
        return f"after step {self.step} {'; '.join(told)}: {len(self.members)} are left, {self.members}"


class ElasticGroup:
    """One replica's place among those that are there. `world` is alone outside of meetings.

    A replica takes its own share of the samples, number `slot` of the `slots` that the run began with, whoever else is
    there: what a lost one would have taken is not seen.
    """

    def __init__(
        self,
        replica: Replica,
        timeout_s: float,
        *,
        on_change: Callable[[Change], None] = lambda change: None,
        interrupted: Callable[[], None] = lambda: None,  # raises when waiting to join must end
    ) -> None:
        self.comm = ElasticComm(timeout_s)
        self.world: Comm = self.comm
        self.slot, self.slots = replica.number, replica.count
        self.changes: list[Change] = []
        self._on_change, self._interrupted = on_change, interrupted
        self._membership = Membership(replica, timeout_s)
        self._version = 0
        self._quorum = 0
        self._running = False
        self._group = ""
        self._members: list[Seat] = []
        self._place = (0, 1)  # rank and size in the last synchronisation that was kept
        self._past: list[tuple[Event, Sequence[Seat]]] = []

    def require_identical(self, sha256_of: Mapping[str, str]) -> None:
        first = json.loads(self._membership.agree("alike", json.dumps(dict(sha256_of))))
        if wrong := [what for what in sha256_of if first.get(what) != sha256_of[what]]:
            raise ConfigError([f"replicas differ: {what} of this one is not that of the first" for what in wrong])

    # Joining.

    def begin(self, member: Participant) -> bool:
        """Waits for all at the start of a run, or else for the next synchronisation of those that train.

        Raises OverError when they have finished, CutOffError when too few come within the timeout.
        """
        self._membership.step = lambda: member.step
        self._running, deadline = False, time.monotonic() + self._membership.timeout_s
        with self._reachable():
            while True:
                event = self._ask(member.step, "start", self._stop_waiting)
                crew = _training(event) or self._first_crew(event)
                if self._membership.name in [seat.name for seat in crew]:
                    if self._start(event, crew, member):
                        return False
                elif crew:
                    deadline = time.monotonic() + self._membership.timeout_s
                    if self._join(event, crew, member):
                        return True
                elif time.monotonic() > deadline:
                    raise CutOffError(f"{len(event.seats)} of {self.slots} replicas came, expected all at the start")
                else:
                    time.sleep(START_POLL_S)

    def _first_crew(self, event: Event) -> list[Seat]:
        """Nobody trains yet: when all are there, those that have come furthest. The others get the state of these."""
        if len({seat.number for seat in event.seats}) < self.slots:
            return []
        newest = max((seat.version, seat.step) for seat in event.seats)
        return [seat for seat in event.seats if (seat.version, seat.step) == newest]

    def _start(self, event: Event, crew: Sequence[Seat], member: Participant) -> bool:
        kept, _ = self._hold(event, crew, member.check_start)
        if kept:
            self._settle(event, crew, member.step)
            self._running = True
            self._admit(event, crew, member)
        return kept

    def _join(self, event: Event, crew: Sequence[Seat], member: Participant) -> bool:
        """Whether this replica now stands where the crew does."""
        if not self._membership.verdict(event, crew) or crew[0].what not in ADMITTING:
            return False
        if self.slot in [seat.number for seat in crew]:  # and it votes: not one that has just died and is missed late
            raise ConfigError(f"DDP_AGENT_REPLICA: found {self.slot}, which another replica is already")
        rank = 1 + [seat.name for seat in _newcomers(event, crew)].index(self._membership.name)
        try:
            member.load_join_state(self._exchange(event, crew, rank, None))
        except CommError as error:
            _log.warning("the state of the others did not arrive (%s); asking again", error)
            return False
        self._members = []
        self._settle(event, crew, member.step)
        self._place = (0, 1)
        self._running = True
        _log.warning("joined after step %d, beside replicas %s", member.step, [seat.number for seat in crew])
        return True

    def _stop_waiting(self) -> None:
        self._interrupted()
        if self._membership.store.check(["over"]):
            raise OverError

    # Meeting.

    def run_collective(self, member: Participant, work: Callable[[], T], what: Purpose) -> T:
        """See `ReplicaGroup`. Raises OvertakenError when the others went on without this replica."""
        with self._reachable():
            while True:
                with self.comm.ledger.blocked() if what in REDUCING else nullcontext():
                    event = self._ask(member.step, what, lambda: None)
                crew = self._crew(event)
                saved = member.snapshot()
                kept, result = self._hold(event, crew, work, member if what in REDUCING else None)
                if kept:
                    self._settle(event, crew, member.step)
                    if what in REDUCING:
                        self._place = (_rank(crew, self._membership.name), len(crew))
                    if what in ADMITTING:
                        self._admit(event, crew, member)
                    return cast(T, result)
                member.restore(saved)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except DistError as error:  # of the store: what collectives raise has become a CommError
            raise CutOffError(f"the keeper at {self._membership.replica.keeper} is gone: {error}") from error

    def _crew(self, event: Event) -> list[Seat]:
        """Those that train and have all results so far; raises OvertakenError when this replica has not.

        Between two quorums that it was in there can have been none, or else it was thought to be lost.
        """
        crew = _training(event)
        if self._version < crew[0].version or event.quorum > self._quorum + 1:
            self._running = False
            raise OvertakenError
        self._quorum = event.quorum
        found = {(seat.step, seat.what) for seat in crew}
        if len(found) > 1:
            raise RuntimeError(f"replicas came to different meetings: {sorted(found)}; do their settings differ?")
        return crew

    def _ask(self, step: int, what: Purpose, interrupted: Callable[[], None]) -> Event:
        seat = Seat(
            name=self._membership.name,
            number=self.slot,
            version=self._version,
            step=step,
            running=self._running,
            what=what,
            group=self._group,
        )
        with self._reachable():
            return self._membership.ask(seat, interrupted)

    def _hold(
        self, event: Event, crew: Sequence[Seat], work: Callable[[], T], regrouped: Participant | None = None
    ) -> tuple[bool, T | None]:
        """Whether the work's result is kept by all, and the result."""
        result: T | None = None
        ok = False
        try:
            self._connect(event, crew)
            if regrouped is not None and (place := (_rank(crew, self._membership.name), len(crew))) != self._place:
                regrouped.regroup(*self._place, place[1])
            with self.comm.connected():
                result = work()
            ok = True
        except CommError as error:
            _log.warning("a meeting of replicas %s failed: %s", [seat.number for seat in crew], error)
            self._disconnect()
        except BaseException:
            self._membership.undo(event)
            raise
        kept = self._membership.vote(event, crew, ok)
        if not kept:
            self._disconnect()
        return kept, result

    def _connect(self, event: Event, crew: Sequence[Seat]) -> None:
        groups = {seat.group for seat in crew}
        same = [seat.name for seat in crew] == [seat.name for seat in self._members]
        if groups == {self._group} and self._group and same:
            return
        self._group = event.key
        self.comm.connect(self._membership.group_store(event.key), _rank(crew, self._membership.name), len(crew))

    def _disconnect(self) -> None:
        self._group = ""
        self.comm.close()

    def _settle(self, event: Event, crew: Sequence[Seat], step: int) -> None:
        """The meeting is over and its result is kept."""
        self._version, self._quorum = crew[0].version + 1, event.quorum
        before, now = {seat.name: seat for seat in self._members}, {seat.name: seat for seat in crew}
        lost = {seat.number: self._membership.last_step(name) for name, seat in before.items() if name not in now}
        joined = [seat.number for name, seat in now.items() if name not in before and before]
        self._members = list(crew)
        if lost or joined:
            change = Change(step, [seat.number for seat in crew], lost, joined)
            self.changes.append(change)
            _log.warning("%s", change)
            self._on_change(change)
        self._past.append((event, crew))
        if len(self._past) > FORGET_AFTER:
            old, voters = self._past.pop(0)
            if crew[0].name == self._membership.name:
                self._membership.forget(old, voters)

    # Admitting.

    def _admit(self, event: Event, crew: Sequence[Seat], member: Participant) -> None:
        """The first of the crew sends what was just kept; should that fail, the newcomers ask again."""
        if crew[0].name != self._membership.name or not _newcomers(event, crew):
            return
        try:
            self._exchange(event, crew, 0, member.join_state())
        except CommError as error:
            _log.warning("a replica that wanted to join was lost: %s", error)

    def _exchange(self, event: Event, crew: Sequence[Seat], rank: int, join_state: Mapping[str, Any] | None) -> Any:
        """Rank 0's join_state, on its own group of those who join; not counted as any mode's traffic."""
        self._group = ""  # whatever comes of it, the next meeting connects anew
        self.comm.connect(
            self._membership.group_store(f"{event.key}/join_state"), rank, 1 + len(_newcomers(event, crew))
        )
        try:
            with self.comm.connected(), self.comm.uncounted():
                packed = _packed(join_state) if join_state is not None else torch.empty(0, dtype=torch.uint8)
                length = torch.tensor(packed.numel())
                self.comm.broadcast_(length)
                if rank != 0:
                    packed = torch.empty(int(length), dtype=torch.uint8)
                self.comm.broadcast_(packed)
                self.comm.barrier()
        finally:
            self.comm.close()
        return None if rank == 0 else torch.load(io.BytesIO(packed.numpy().tobytes()), weights_only=True)

    def end(self) -> None:
        self._membership.store.set("over", "")
        self._membership.close()
        self.comm.close()

    def facts(self) -> dict[str, int]:
        return {
            "replicas_at_end": len(self._members),
            "replicas_lost": sum(len(change.lost) for change in self.changes),
            "replicas_joined": sum(len(change.joined) for change in self.changes),
        }


def _packed(join_state: Mapping[str, Any]) -> torch.Tensor:
    buffer = io.BytesIO()
    torch.save(join_state, buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def _training(event: Event) -> list[Seat]:
    """Those that train and have the results of all meetings so far."""
    training = [seat for seat in event.seats if seat.running]
    return [seat for seat in training if seat.version == max(it.version for it in training)]


def _newcomers(event: Event, crew: Sequence[Seat]) -> list[Seat]:
    """Those of an event that want to join. (One that trains and is behind will find that out by itself.)"""
    names = {seat.name for seat in crew}
    return [seat for seat in event.seats if seat.name not in names and not seat.running]


def _rank(crew: Sequence[Seat], name: str) -> int:
    return [seat.name for seat in crew].index(name)
