"""Rounds of replicas: all that are alive run one piece of work, and all of them keep its result or none does.

    ask         the lighthouse waits for all replicas that are alive, and leaves out those that are not
    connect     when these are not the ranks of the last round, or a collective of theirs has failed
    work        changes state in place; a copy was kept
    vote        the store decides once. Kept: every replica has the whole result. Undone: all begin again
    admit       after a synchronisation: replicas that asked to join are sent the state that was just kept

The vote misses a replica that dies in any of these at the latest, so no survivor keeps a result that another lacks.
A replica that was only slow or cut off finds that the others have held rounds without it, and joins like a new one.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ddp_agent.distributed.c10d import PrefixStore
from ddp_agent.distributed.ledger import CommError
from ddp_agent.distributed.replica_group import Participant, Purpose
from ddp_agent.elastic.comm import ElasticComm, transfer
from ddp_agent.elastic.membership import Member, Membership, Quorum, rank_of

FORGET_AFTER = 2  # rounds

T = TypeVar("T")

_log = logging.getLogger(__name__)


class OvertakenError(Exception):
    """The others held rounds without this replica, which they took for lost: `begin` again."""


class Rounds:
    """One replica's part in the rounds: with whom it is connected, and which results it has."""

    def __init__(self, comm: ElasticComm, membership: Membership) -> None:
        self.active: list[Member] = []  # the replicas of the last kept round
        self.running = False  # False: this replica wants to join
        self._comm, self._membership = comm, membership
        self._version = 0
        self._quorum_number = 0
        self._connected_to = ""  # key of a quorum
        self._reduced_as = (0, 1)  # rank and size in the last synchronisation that was kept
        self._past: list[tuple[Quorum, list[Member]]] = []

    def ask(self, purpose: Purpose, step: int, interrupted: Callable[[], None]) -> Quorum:
        """Come to a round. Return when all replicas that are alive have come."""
        member = Member(
            name=self._membership.name,
            number=self._membership.replica.number,
            version=self._version,
            step=step,
            running=self.running,
            purpose=purpose,
            group=self._connected_to,
        )
        return self._membership.ask(member, interrupted)

    def active_in(self, quorum: Quorum) -> list[Member]:
        """Return the active members. Raises OvertakenError when this replica lacks results that they have.

        A quorum number that skips one means a quorum without this replica: it was taken for lost.
        """
        active = quorum.active()
        if self._version < active[0].version or quorum.number > self._quorum_number + 1:
            self.running = False
            raise OvertakenError
        self._quorum_number = quorum.number
        purposes = {(member.step, member.purpose) for member in active}
        if len(purposes) > 1:
            raise RuntimeError(f"replicas came to different rounds: {sorted(purposes)}; do their settings differ?")
        return active

    def attempt(
        self, quorum: Quorum, active: list[Member], work: Callable[[], T], reducing: Participant | None = None
    ) -> tuple[bool, T | None]:
        """Run the work. Return True when all replicas keep its result, and the result.

        `reducing`: the participant whose reducer works in it, which must know the number of replicas.
        """
        result: T | None = None
        ok = False
        rank_and_size = (rank_of(self._membership.name, active), len(active))
        try:
            self._connect(quorum, active)
            if reducing is not None and rank_and_size != self._reduced_as:
                reducing.regroup(*self._reduced_as, len(active))
            with self._comm.connected():
                result = work()
            ok = True
        except CommError as error:
            _log.warning("a round of replicas %s failed: %s", [member.number for member in active], error)
            self._disconnect()
        except BaseException:
            self._membership.undo(quorum)
            raise
        kept = self._membership.vote(quorum, active, ok)
        if not kept:
            self._disconnect()
        elif reducing is not None:
            self._reduced_as = rank_and_size
        return kept, result

    def record(self, quorum: Quorum, active: list[Member]) -> None:
        """Note that a round is over and its result is kept."""
        self._version, self._quorum_number, self.active = active[0].version + 1, quorum.number, active
        self._past.append((quorum, active))
        if len(self._past) > FORGET_AFTER:
            old, voters = self._past.pop(0)
            if active[0].name == self._membership.name:
                self._membership.forget(old, voters)

    def record_join(self, quorum: Quorum, active: list[Member]) -> None:
        """Note that this replica has the state of the active ones."""
        self.record(quorum, active)
        self._reduced_as = (0, 1)
        self.running = True

    def transfer(self, quorum: Quorum, active: list[Member], state: Mapping[str, Any] | None = None) -> Any:
        """Send newcomers the state of the first active replica. Without `state`: be one and return it."""
        newcomers = quorum.newcomers(active)
        rank = 1 + rank_of(self._membership.name, newcomers) if state is None else 0
        self._connected_to = ""  # the next round connects anew, whatever becomes of this group
        store = PrefixStore(f"group/{quorum.key}/join", self._membership.store)
        return transfer(self._comm, store, rank, 1 + len(newcomers), state)

    def _connect(self, quorum: Quorum, active: list[Member]) -> None:
        same = [member.name for member in active] == [member.name for member in self.active]
        if same and self._connected_to and {member.group for member in active} == {self._connected_to}:
            return
        self._connected_to = quorum.key
        store = PrefixStore(f"group/{quorum.key}", self._membership.store)
        self._comm.connect(store, rank_of(self._membership.name, active), len(active))

    def _disconnect(self) -> None:
        self._connected_to = ""
        self._comm.close()
