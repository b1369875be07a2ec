"""One replica's connection to the coordinator: its heartbeats, its quorums, its votes, and values that all share."""

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from ddp_agent.distributed.c10d import Store, TCPStore
from ddp_agent.distributed.process import Replica
from ddp_agent.distributed.replica_group import Purpose
from ddp_agent.elastic.coordinator import LIGHTHOUSE, LOST_AFTER_S, PATIENCE_S
from ddp_agent.errors import CutOffError

BEAT_S = 0.2
POLL_S = 0.5
FIRST_VERDICT_POLL_S = 0.002
LAST_VERDICT_POLL_S = 0.05
CONNECT_S = 20.0
FOREVER_S = 7 * 86400.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A replica's report of itself when it comes to a round."""

    name: str  # unique per start: a replica that is started again has another
    number: int
    version: int  # kept rounds whose result it has
    step: int
    running: bool  # False: it wants to join
    purpose: Purpose
    group: str  # key of the quorum whose process group it is connected to; "" for none


@dataclass(frozen=True)
class Quorum:
    """All members that came to one round."""

    key: str  # unique
    number: int  # one higher whenever its members are not those of the quorum before
    members: tuple[Member, ...]  # by name, and so by number

    def active(self) -> list[Member]:
        """Return the members that train and have the results of all rounds so far."""
        running = [member for member in self.members if member.running]
        return [member for member in running if member.version == max(it.version for it in running)]

    def founders(self, count: int) -> list[Member]:
        """Return the members that start a run in which nobody trains yet; none before all `count` replicas are there.

        They are those with the newest checkpoint. The others receive their state.
        """
        if len({member.number for member in self.members}) < count:
            return []
        newest = max((member.version, member.step) for member in self.members)
        return [member for member in self.members if (member.version, member.step) == newest]

    def newcomers(self, active: list[Member]) -> list[Member]:
        """Return the members that want to join. A running member that is behind finds that out by itself."""
        names = {member.name for member in active}
        return [member for member in self.members if member.name not in names and not member.running]


def rank_of(name: str, members: list[Member]) -> int:
    """Return a member's rank: its index among the members."""
    return [member.name for member in members].index(name)


class Membership:
    """One replica's membership. Heartbeats begin with the first `ask`: until then nobody waits for this replica.

    `step()` is the step that heartbeats show to the others.
    """

    def __init__(self, replica: Replica, timeout_s: float, *, step: Callable[[], int]) -> None:
        self.replica, self.timeout_s = replica, timeout_s
        self.name = f"{replica.number:05d}:{uuid.uuid4()}"
        self._step = step
        host, _, port = replica.coordinator.rpartition(":")
        try:
            self.store: Store = TCPStore(
                host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S)
            )
            self._lost_after_s = float(self.store.get(LOST_AFTER_S))
            self._patience_s = float(self.store.get(PATIENCE_S))
            self._lighthouse = self.store.get(LIGHTHOUSE).decode()
        except RuntimeError as error:
            raise CutOffError(f"no coordinator answers at {replica.coordinator}: {error}") from error
        self._client = self._connect()
        self._show(self.store)
        self._closed = threading.Event()
        self._last_seen: dict[str, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)

    def _connect(self) -> Any:
        from torchft.coordination import LighthouseClient  # an extra, and slow to import

        return LighthouseClient(addr=self._lighthouse, connect_timeout=timedelta(seconds=CONNECT_S))

    def last_step(self, name: str) -> int:
        """Return the step in a replica's last heartbeat."""
        return int(self.store.get(f"heartbeat/{name}").decode().split()[1])

    def ask(self, member: Member, interrupted: Callable[[], None]) -> Quorum:
        """Return when all replicas that are alive have asked. `interrupted` may raise meanwhile. Raises CutOffError."""
        self._show(self.store)
        if not self._thread.is_alive():
            self._thread.start()
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._request_quorum, args=(member, answers), name="quorum", daemon=True).start()
        while True:
            interrupted()
            try:
                answer = answers.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if isinstance(answer, Exception):
                raise CutOffError(f"the coordinator's lighthouse at {self._lighthouse} gives no answer: {answer}")
            members = sorted((Member(**it.data) for it in answer.participants), key=lambda it: it.name)
            key = f"{answer.quorum_id}.{answer.created.seconds}.{answer.created.nanos}"
            return Quorum(key, answer.quorum_id, tuple(members))

    def vote(self, quorum: Quorum, voters: Sequence[Member], ok: bool) -> bool:
        """Report whether this replica has a round's result. Return the verdict."""
        self.store.set(f"vote/{quorum.key}/{self.name}", "")
        if not ok:
            self.undo(quorum)
        elif self.store.add(f"votes/{quorum.key}", 1) == len(voters):
            self.store.compare_set(f"verdict/{quorum.key}", "", "kept")
        return self.verdict(quorum, voters)

    def undo(self, quorum: Quorum) -> None:
        """Propose that the result is undone. The first proposal in the store is the verdict."""
        self.store.compare_set(f"verdict/{quorum.key}", "", "undone")

    def verdict(self, quorum: Quorum, voters: Sequence[Member]) -> bool:
        """Wait for the verdict. Return True when the result is kept. A voter without heartbeats votes against it."""
        looked, pause_s = time.monotonic(), FIRST_VERDICT_POLL_S
        while not self.store.check([f"verdict/{quorum.key}"]):
            time.sleep(pause_s)
            pause_s = min(1.1 * pause_s, LAST_VERDICT_POLL_S)
            if time.monotonic() > looked + BEAT_S:
                looked = time.monotonic()
                if self._silent([it.name for it in voters if not self.store.check([f"vote/{quorum.key}/{it.name}"])]):
                    self.undo(quorum)
        return self.store.get(f"verdict/{quorum.key}") == b"kept"

    def forget(self, quorum: Quorum, voters: Sequence[Member]) -> None:
        """Delete the votes of a round that all have left. The verdict stays: a voter may have been cut off."""
        for key in (f"votes/{quorum.key}", *(f"vote/{quorum.key}/{it.name}" for it in voters)):
            self.store.delete_key(key)

    def close(self) -> None:
        """End the heartbeats: nobody need wait for this replica any more."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _request_quorum(self, member: Member, answers: "queue.SimpleQueue[Any]") -> None:
        """Ask in a thread: the main thread listens to signals. A replica that joins may wait for a whole period."""
        patience_s = self._patience_s + self.timeout_s if member.running else FOREVER_S
        try:
            answer = self._client.quorum(
                self.name,
                timeout=timedelta(seconds=patience_s),
                address="",
                store_address="",
                step=member.version,
                world_size=1,
                shrink_only=False,
                data=asdict(member),
            )
        except Exception as error:
            answer = error
        answers.put(answer)

    def _silent(self, names: Sequence[str]) -> list[str]:
        """Return the replicas without a new heartbeat for `lost_after_s`, as far as this replica has looked."""
        now = time.monotonic()
        for name in names:
            heartbeat = self.store.get(f"heartbeat/{name}")
            before, since = self._last_seen.get(name, (b"", now))
            self._last_seen[name] = (heartbeat, since if heartbeat == before else now)
        return [name for name in names if now - self._last_seen[name][1] > self._lost_after_s]

    def _beat(self) -> None:
        """Send heartbeats over connections of its own: the main thread may wait on the others."""
        store, client = self.store.clone(), self._connect()
        while not self._closed.is_set():
            try:
                self._show(store)
                client.heartbeat(self.name, timeout=timedelta(seconds=self._lost_after_s))
            except Exception as error:
                _log.debug("no heartbeat reached the coordinator: %s", error)
            self._closed.wait(BEAT_S)

    def _show(self, store: Store) -> None:
        store.set(f"heartbeat/{self.name}", f"{time.monotonic_ns()} {self._step()}")
