"""Who is there, and what they decided: the keeper's lighthouse and store, as one replica sees them."""

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from ddp_agent.distributed.c10d import PrefixStore, Store, TCPStore
from ddp_agent.distributed.torchrun_env import Replica
from ddp_agent.elastic.coordinator import LIGHTHOUSE, LOST_AFTER_S, PATIENCE_S
from ddp_agent.errors import CutOffError

BEAT_S = 0.2
POLL_S = 0.002
CONNECT_S = 20.0
FOREVER_S = 7 * 86400.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Seat:
    """What a replica says of itself when it comes to a meeting."""

    name: str  # of this start of it: one that comes back has another
    number: int
    version: int  # meetings whose result it has
    step: int
    running: bool  # False: it wants to join
    what: str
    group: str  # the set of ranks that it is connected with, as `Event.key` of when that was; "" for none


@dataclass(frozen=True)
class Event:
    """Everybody who came at one time. Its key is like no other's."""

    key: str
    quorum: int  # one more whenever those who come are not those who came before
    seats: tuple[Seat, ...]  # by name, and so by number


class Membership:
    """One replica's. It shows signs of life from the first `ask` on: until then nobody waits for it."""

    def __init__(self, replica: Replica, timeout_s: float) -> None:
        self.replica, self.timeout_s = replica, timeout_s
        self.step: Callable[[], int] = lambda: 0  # shown to the others
        self.name = f"{replica.number:05d}:{uuid.uuid4()}"
        host, _, port = replica.keeper.rpartition(":")
        try:
            self.store: Store = TCPStore(
                host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S)
            )
            self.lost_after_s = float(self.store.get(LOST_AFTER_S))
            self._patience_s = float(self.store.get(PATIENCE_S))
            self._lighthouse = self.store.get(LIGHTHOUSE).decode()
        except RuntimeError as error:
            raise CutOffError(f"no keeper answers at {replica.keeper}: {error}") from error
        self._client = self._connect()
        self._show(self.store)
        self._closed = False
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)

    def _connect(self) -> Any:
        from torchft.coordination import LighthouseClient  # an extra, and slow to import

        return LighthouseClient(addr=self._lighthouse, connect_timeout=timedelta(seconds=CONNECT_S))

    def group_store(self, key: str) -> Store:
        return PrefixStore(f"group/{key}", self.store)

    def agree(self, key: str, proposal: str) -> str:
        """The first proposal, on every replica that ever asks."""
        return self.store.compare_set(f"agreed/{key}", "", proposal).decode()

    def last_step(self, name: str) -> int:
        """Where a replica was when it last showed a sign of life."""
        return int(self.store.get(f"sign/{name}").decode().split()[1])

    # Meeting.

    def ask(self, seat: Seat, interrupted: Callable[[], None]) -> Event:
        """Returns when all that are alive have asked; `interrupted` may raise meanwhile. Raises CutOffError."""
        self._show(self.store)
        if not self._thread.is_alive():
            self._thread.start()
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._quorum, args=(seat, answers), name="quorum", daemon=True).start()
        while True:
            interrupted()
            try:
                answer = answers.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(answer, Exception):
                raise CutOffError(f"the keeper's lighthouse at {self._lighthouse} gives no answer: {answer}")
            seats = sorted((Seat(**member.data) for member in answer.participants), key=lambda it: it.name)
            key = f"{answer.quorum_id}.{answer.created.seconds}.{answer.created.nanos}"
            return Event(key, answer.quorum_id, tuple(seats))

    def _quorum(self, seat: Seat, answers: "queue.SimpleQueue[Any]") -> None:
        """Beside the main thread, which listens to signals. Who wants to join may wait for a whole period."""
        patience_s = self._patience_s + self.timeout_s if seat.running else FOREVER_S
        try:
            answer = self._client.quorum(
                self.name,
                timeout=timedelta(seconds=patience_s),
                address="",
                store_address="",
                step=seat.version,
                world_size=1,
                shrink_only=False,
                data=asdict(seat),
            )
        except Exception as error:
            answer = error
        answers.put(answer)

    def vote(self, event: Event, voters: Sequence[Seat], ok: bool) -> bool:
        """Whether the meeting's result is kept: by all, when all have it, or by none. The store decides, once."""
        self.store.set(f"vote/{event.key}/{self.name}", "")
        if not ok:
            self._propose(event, "undone")
        elif self.store.add(f"votes/{event.key}", 1) == len(voters):
            self._propose(event, "kept")
        return self.verdict(event, voters)

    def undo(self, event: Event) -> None:
        self._propose(event, "undone")

    def verdict(self, event: Event, voters: Sequence[Seat]) -> bool:
        """Waits for it. A voter that shows no sign of life any more has voted against."""
        looked, pause_s = time.monotonic(), POLL_S
        while not self.store.check([f"verdict/{event.key}"]):
            time.sleep(pause_s)
            pause_s = min(1.1 * pause_s, BEAT_S / 4)
            if time.monotonic() > looked + BEAT_S:
                looked = time.monotonic()
                if self.silent([it.name for it in voters if not self.store.check([f"vote/{event.key}/{it.name}"])]):
                    self._propose(event, "undone")
        return self.store.get(f"verdict/{event.key}") == b"kept"

    def _propose(self, event: Event, verdict: str) -> None:
        self.store.compare_set(f"verdict/{event.key}", "", verdict)

    def forget(self, event: Event, voters: Sequence[Seat]) -> None:
        """The votes of a meeting that everybody has left. The verdict stays: a voter may have been cut off."""
        for key in (f"votes/{event.key}", *(f"vote/{event.key}/{it.name}" for it in voters)):
            self.store.delete_key(key)

    # Signs of life.

    def silent(self, names: Sequence[str]) -> list[str]:
        """Those that have shown nothing new for `lost_after_s`, as far as this replica has looked."""
        now = time.monotonic()
        for name in names:
            sign = self.store.get(f"sign/{name}")
            before, since = self._seen.get(name, (b"", now))
            self._seen[name] = (sign, since if sign == before else now)
        return [name for name in names if now - self._seen[name][1] > self.lost_after_s]

    def _beat(self) -> None:
        """With connections of its own: the main thread may wait on the others."""
        store, client = self.store.clone(), self._connect()
        while not self._closed:
            try:
                self._show(store)
                client.heartbeat(self.name, timeout=timedelta(seconds=self.lost_after_s))
            except Exception as error:
                _log.debug("no sign of life reached the keeper: %s", error)
            time.sleep(BEAT_S)

    def close(self) -> None:
        """No more signs of life: nobody need wait for this replica."""
        self._closed = True
        if self._thread.is_alive():
            self._thread.join()

    def _show(self, store: Store) -> None:
        store.set(f"sign/{self.name}", f"{time.monotonic_ns()} {self.step()}")
