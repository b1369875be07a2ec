"""One replica's connection to the coordinator: its heartbeats, its quorums, its votes, and values that all share."""

import json
import logging
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, get_args

from ddp_agent.distributed.c10d import TCPStore
from ddp_agent.distributed.failure_report import STEPS, in_range
from ddp_agent.distributed.loopback import split
from ddp_agent.distributed.process import Replica
from ddp_agent.distributed.replica_group import Purpose
from ddp_agent.distributed.run_secret import VARIABLE, SignedStore
from ddp_agent.distributed.standstill import AwakeClock, Unchanged
from ddp_agent.elastic.coordinator import LIGHTHOUSE, LOST_AFTER_S, PATIENCE_S, shared, values_in
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

    @classmethod
    def from_json(cls, text: str) -> "Member":
        """Return the member of a JSON object. Raise ValueError for anything else."""
        found = json.loads(text)
        kinds = {"name": str, "number": int, "version": int, "step": int, "running": bool, "purpose": str, "group": str}
        if not isinstance(found, dict) or {key: type(value) for key, value in found.items()} != kinds:
            raise ValueError("found no member")
        if found["purpose"] not in get_args(Purpose):
            raise ValueError(f"purpose: found {found['purpose'][:50]!r}")
        return cls(**found)


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
        try:
            host, port = split(replica.coordinator)
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S))
            self.store = shared(store)  # of process groups
            self.values = values_in(self.store)
            self._lost_after_s = self.values.wait(LOST_AFTER_S, _seconds, CONNECT_S)
            self._patience_s = self.values.wait(PATIENCE_S, _seconds, CONNECT_S)
            self._lighthouse = self.values.wait(LIGHTHOUSE, _address, CONNECT_S)
        except TimeoutError as error:
            raise CutOffError(
                f"the coordinator at {replica.coordinator} has another secret: {VARIABLE} must be the same in the "
                "environment of all launchers of one run"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise CutOffError(f"no coordinator answers at {replica.coordinator}: {error}") from error
        self._client = self._connect()
        self._showing = threading.Lock()
        self._show(self.values)
        self._closed = threading.Event()
        self._clock, self._unchanged = AwakeClock(), Unchanged[str]()
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)

    def _connect(self) -> Any:
        from torchft.coordination import LighthouseClient  # an extra, and slow to import

        return LighthouseClient(addr=self._lighthouse, connect_timeout=timedelta(seconds=CONNECT_S))

    def last_step(self, name: str) -> int:
        """Return the step in a replica's last heartbeat."""
        return self.values.get(f"heartbeat/{name}", _step) or 0

    def ask(self, member: Member, interrupted: Callable[[], None]) -> Quorum:
        """Return when all replicas that are alive have asked. `interrupted` may raise meanwhile. Raises CutOffError."""
        self._show(self.values)
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
            found = [self._member(it.data) for it in answer.participants]
            members = sorted((it for it in found if it), key=lambda it: it.name)
            if self.name not in [it.name for it in members]:
                raise CutOffError(f"the coordinator's lighthouse at {self._lighthouse} answers without this replica")
            key = f"{answer.quorum_id}.{answer.created.seconds}.{answer.created.nanos}"
            return Quorum(key, answer.quorum_id, tuple(members))

    def vote(self, quorum: Quorum, voters: Sequence[Member], ok: bool) -> bool:
        """Report whether this replica has a round's result. Return the verdict."""
        self.values.set(f"vote/{quorum.key}/{self.name}", "yes" if ok else "no")
        if not ok:
            self.undo(quorum)
        elif all(self.values.get(f"vote/{quorum.key}/{it.name}", str) == "yes" for it in voters):
            self.values.first(f"verdict/{quorum.key}", "kept", _verdict)  # the last voter sees all votes
        return self.verdict(quorum, voters)

    def undo(self, quorum: Quorum) -> None:
        """Propose that the result is undone. The first proposal in the store is the verdict."""
        self.values.first(f"verdict/{quorum.key}", "undone", _verdict)

    def verdict(self, quorum: Quorum, voters: Sequence[Member]) -> bool:
        """Wait for the verdict. Return True when the result is kept. A voter without heartbeats votes against it."""
        looked, pause_s = time.monotonic(), FIRST_VERDICT_POLL_S
        while (verdict := self.values.get(f"verdict/{quorum.key}", _verdict)) is None:
            time.sleep(pause_s)
            pause_s = min(1.1 * pause_s, LAST_VERDICT_POLL_S)
            if time.monotonic() > looked + BEAT_S:
                looked = time.monotonic()
                keys = {it.name: f"vote/{quorum.key}/{it.name}" for it in voters}
                if self._silent([name for name, key in keys.items() if not self.values.get(key, str)]):
                    self.undo(quorum)
        return verdict == "kept"

    def forget(self, quorum: Quorum, voters: Sequence[Member]) -> None:
        """Delete the votes of a round that all have left. The verdict stays: a voter may have been cut off."""
        for voter in voters:
            self.values.delete(f"vote/{quorum.key}/{voter.name}")

    def finish(self) -> None:
        """Declare the run finished."""
        self.values.set("over", "yes")

    def is_over(self) -> bool:
        """Return whether a replica has finished the run."""
        return self.values.get("over", str) == "yes"

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
                data={"member": self.values.signed("member", json.dumps(asdict(member)))},
            )
        except Exception as error:
            answer = error
        answers.put(answer)

    def _member(self, data: Any) -> Member | None:
        """Return the member that a participant of a quorum is, or None for a stranger."""
        text = data.get("member") if isinstance(data, Mapping) else None
        return self.values.read("member", text.encode() if isinstance(text, str) else b"", Member.from_json)

    def _silent(self, names: Sequence[str]) -> list[str]:
        """Return the replicas without a new heartbeat for `lost_after_s`, as far as this replica has looked."""
        heartbeats = {name: self.values.get(f"heartbeat/{name}", str) for name in names}
        silent_s = self._unchanged.look(heartbeats, self._clock.tick())
        return [name for name in names if silent_s[name] > self._lost_after_s]

    def _beat(self) -> None:
        """Send heartbeats over connections of its own: the main thread may wait on the others."""
        values, client = values_in(self.store.clone()), self._connect()
        while not self._closed.is_set():
            try:
                self._show(values)
                client.heartbeat(self.name, timeout=timedelta(seconds=self._lost_after_s))
            except Exception as error:
                _log.debug("no heartbeat reached the coordinator: %s", error)
            self._closed.wait(BEAT_S)

    def _show(self, values: SignedStore) -> None:
        with self._showing:  # else a thread that was late would overwrite a newer step with an older one
            values.set(f"heartbeat/{self.name}", f"{time.monotonic_ns()} {self._step()}")


def _step(text: str) -> int:
    return in_range(int(text.split()[1]), STEPS, "step") if len(text.split()) == 2 else 0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e9:
        raise ValueError(f"found {text[:50]!r}, expected seconds")
    return seconds


def _address(text: str) -> str:
    if not re.fullmatch(r"http://[A-Za-z0-9.:\[\]_-]{1,300}", text):
        raise ValueError(f"found {text[:50]!r}, expected an address")
    return text


def _verdict(text: str) -> str:
    if text not in ("kept", "undone"):
        raise ValueError(f"found {text[:50]!r}, expected kept or undone")
    return text
