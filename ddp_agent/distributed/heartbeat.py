"""Heartbeats that ranks leave in their store, and conclusions from those that others left, or did not."""

import os
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from ddp_agent.distributed.c10d import Store
from ddp_agent.distributed.failure_report import Failure


class Heartbeats:
    """One rank's heartbeats and its view of those of others. Making it sends the first one.

    Rank 0 watches all ranks and they watch rank 0: n ranks cost 2 n requests per round.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size, self._count = store, rank, world_size, 0
        self._watched = [other for other in (range(world_size) if rank == 0 else [0]) if other != rank]
        self._last_seen: dict[int, tuple[str, float]] = {}
        self._local_pids: dict[int, int] = {}  # by rank, of ranks in this process's namespace
        store.set(f"process/{rank}", f"{namespace()} {os.getpid()}")
        self.send(begun=0, promise=None)

    def send(self, begun: int, promise: int | None) -> None:
        """Replace this rank's heartbeat in the store. Takes about 0.2 ms.

        `begun`: the last step that the loop has begun. `promise`: it begins no step beyond this one until all have
        agreed where to stop.
        """
        self._count += 1
        self._store.set(f"heartbeat/{self._rank}", f"{self._count} {begun} {'' if promise is None else promise}")

    def latest_promise(self) -> int | None:
        """Return the latest step that any rank has promised, or None before all ranks have promised."""
        promises = [text.split(" ")[2] for text in self._texts(range(self._world_size))]
        return max(map(int, promises)) if all(promises) else None

    def silent(self, limit_s: float) -> Failure | None:
        """Return the failure of a watched rank without a new heartbeat for longer than `limit_s`."""
        now = time.monotonic()
        for rank, text in zip(self._watched, self._texts(self._watched), strict=True):
            before, since = self._last_seen.get(rank, ("", now))
            self._last_seen[rank] = (text, since if text == before else now)
            silent_s = now - self._last_seen[rank][1]
            if silent_s > limit_s:
                begun = _begun(text)
                return Failure.lost(rank, begun, f"no sign of life for {silent_s:.0f} s, last seen in step {begun}")
        return None

    def dead(self) -> Failure | None:
        """Return the failure of a rank whose process would be visible to this one, but is gone."""
        if not self._local_pids:
            texts = self._store.multi_get([f"process/{rank}" for rank in range(self._world_size)])
            processes, own = [text.decode().rpartition(" ") for text in texts], namespace()
            self._local_pids = {rank: int(pid) for rank, (where, _, pid) in enumerate(processes) if where == own}
        for rank, pid in self._local_pids.items():
            if _dead(pid):
                begun = _begun(*self._texts([rank]))
                text = f"died without a word, last seen in step {begun}; torchrun tells by which signal"
                return Failure.lost(rank, begun, text)
        return None

    def _texts(self, ranks: Iterable[int]) -> list[str]:
        keys = [f"heartbeat/{rank}" for rank in ranks]
        return [text.decode() for text in self._store.multi_get(keys)] if keys else []


def _begun(text: str) -> int:
    return int(text.split(" ")[1])


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
