"""The group of replicas as a run sees it: it starts, loses replicas and takes back those that return."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar, cast

from torch.distributed import DistError

from ddp_agent.distributed.ledger import CommError
from ddp_agent.distributed.process import Replica
from ddp_agent.distributed.replica_group import Participant, Purpose, ReplicaGroup
from ddp_agent.elastic.comm import ElasticComm
from ddp_agent.elastic.membership import Member, Membership, Quorum
from ddp_agent.elastic.rounds import Rounds
from ddp_agent.errors import CheckpointError, ConfigError, CutOffError

ADMITTING = ("start", "sync")
REDUCING = ("sync", "flush")  # the purposes in which the mode's reducer works
START_POLL_S = 0.1

T = TypeVar("T")

_log = logging.getLogger(__name__)


class OverError(Exception):
    """The others have finished the run."""


@dataclass(frozen=True)
class Change:
    """A change of the group. Replicas are given by number."""

    step: int
    members: list[int]  # the replicas that train from now on
    lost: dict[int, int]  # replica to the step in which it was last seen
    joined: list[int]

    def __str__(self) -> str:
        texts = [f"replica {number} was lost, last seen in step {step}" for number, step in self.lost.items()]
        texts += [f"replica {number} has joined" for number in self.joined]
        return f"after step {self.step} {'; '.join(texts)}: {len(self.members)} are left, {self.members}"


class ElasticGroup(ReplicaGroup):
    """Replicas that may be lost and come back. `world` is alone outside of rounds.

    A replica takes its own share of the samples, number `slot` of the `slots` with which the run began, no matter who
    else is there: the samples of a lost replica are not seen. `on_change` is called after every change of the group.
    `interrupted` is called while this replica waits to join, and raises when the waiting must end.
    """

    def __init__(
        self,
        replica: Replica,
        timeout_s: float,
        *,
        on_change: Callable[[Change], None] = lambda change: None,
        interrupted: Callable[[], None] = lambda: None,
    ) -> None:
        self.comm = ElasticComm(timeout_s)
        super().__init__(self.comm)
        self.slot, self.slots = replica.number, replica.count
        self.changes: list[Change] = []
        self._on_change, self._interrupted = on_change, interrupted
        self._participant: Participant | None = None
        self._membership = Membership(replica, timeout_s, step=self._step)
        self._rounds = Rounds(self.comm, self._membership)

    def require_identical(self, sha256_of: Mapping[str, str]) -> None:
        first = self._membership.values.first("agreed/identical", json.dumps(dict(sha256_of)), _hashes)
        if wrong := [name for name in sha256_of if first.get(name) != sha256_of[name]]:
            raise ConfigError([f"replicas differ: {name} of this one is not that of the first" for name in wrong])

    def begin(self, participant: Participant) -> bool:
        """Wait for all replicas at the start of a run, later for the next synchronisation of those that train.

        Return True if the state was received from another replica. Raises OverError when the others have finished,
        CutOffError when too few come within the timeout.
        """
        self._participant, self._rounds.running = participant, False
        deadline = time.monotonic() + self._membership.timeout_s
        with self._coordinator_reachable():
            while True:
                quorum = self._ask("start", participant.step, self._stop_waiting)
                active = quorum.active() or quorum.founders(self.slots)
                if self._membership.name in [member.name for member in active]:
                    if self._start(quorum, active, participant):
                        return False
                elif active:
                    deadline = time.monotonic() + self._membership.timeout_s
                    if self._join(quorum, active, participant):
                        return True
                elif time.monotonic() > deadline:
                    count = len(quorum.members)
                    raise CutOffError(f"{count} of {self.slots} replicas came, expected all at the start")
                else:
                    time.sleep(START_POLL_S)

    def run_collective(self, participant: Participant, work: Callable[[], T], purpose: Purpose) -> T:
        """See `ReplicaGroup`. Raises OvertakenError when the others continued without this replica."""
        reduces = purpose in REDUCING
        with self._coordinator_reachable():
            while True:
                with self.comm.ledger.blocked() if reduces else nullcontext():
                    quorum = self._ask(purpose, participant.step, lambda: None)
                active = self._rounds.active_in(quorum)
                saved = participant.snapshot()
                kept, result = self._rounds.attempt(quorum, active, work, participant if reduces else None)
                if kept:
                    self._record(quorum, active)
                    if purpose in ADMITTING:
                        self._admit(quorum, active, participant)
                    return cast(T, result)
                participant.restore(saved)

    def end(self) -> None:
        self._membership.finish()
        self._membership.close()
        self.comm.close()

    def facts(self) -> dict[str, int]:
        return {
            "replicas_at_end": len(self._rounds.active),
            "replicas_lost": sum(len(change.lost) for change in self.changes),
            "replicas_joined": sum(len(change.joined) for change in self.changes),
        }

    def _step(self) -> int:
        return self._participant.step if self._participant else 0

    def _stop_waiting(self) -> None:
        self._interrupted()
        if self._membership.is_over():
            raise OverError

    def _start(self, quorum: Quorum, active: list[Member], participant: Participant) -> bool:
        kept, _ = self._rounds.attempt(quorum, active, participant.check_start)
        if kept:
            self._record(quorum, active)
            self._rounds.running = True
            self._admit(quorum, active, participant)
        return kept

    def _join(self, quorum: Quorum, active: list[Member], participant: Participant) -> bool:
        """Return True when this replica has reached the step of the active ones."""
        if not self._membership.verdict(quorum, active) or active[0].purpose not in ADMITTING:
            return False
        # An active replica with this number has just voted, so it is not one that died a moment ago.
        if self.slot in [member.number for member in active]:
            raise ConfigError(f"DDP_AGENT_REPLICA: found {self.slot}, which another replica is already")
        try:
            state = self._rounds.transfer(quorum, active)
        except CommError as error:
            _log.warning("the state of the others did not arrive (%s); asking again", error)
            return False
        try:
            participant.load_join_state(state)
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"the state of the other replicas does not fit this one: {error}") from error
        self._rounds.record_join(quorum, active)
        _log.warning("joined after step %d, beside replicas %s", participant.step, [it.number for it in active])
        return True

    def _admit(self, quorum: Quorum, active: list[Member], participant: Participant) -> None:
        """Send newcomers the state that was just kept, from the first active replica. If that fails they ask again."""
        if active[0].name == self._membership.name and quorum.newcomers(active):
            try:
                self._rounds.transfer(quorum, active, participant.join_state())
            except CommError as error:
                _log.warning("a replica that wanted to join was lost: %s", error)

    @contextmanager
    def _coordinator_reachable(self) -> Iterator[None]:
        try:
            yield
        except DistError as error:  # of the store: errors of collectives have become CommErrors
            raise CutOffError(f"the coordinator at {self._membership.replica.coordinator} is gone: {error}") from error

    def _ask(self, purpose: Purpose, step: int, interrupted: Callable[[], None]) -> Quorum:
        with self._coordinator_reachable():  # inside `blocked`, which would make a CommError of it
            return self._rounds.ask(purpose, step, interrupted)

    def _record(self, quorum: Quorum, active: list[Member]) -> None:
        """Note that a round's result is kept, and report how the group has changed since the round before."""
        before = self._rounds.active
        names_before, names_now = {member.name for member in before}, {member.name for member in active}
        lost = {it.number: self._membership.last_step(it.name) for it in before if it.name not in names_now}
        joined = [member.number for member in active if before and member.name not in names_before]
        if lost or joined:
            change = Change(self._step(), [member.number for member in active], lost, joined)
            self.changes.append(change)
            _log.warning("%s", change)
            self._on_change(change)
        self._rounds.record(quorum, active)


def _hashes(text: str) -> dict[str, str]:
    found = json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("found no hashes")
    return found
