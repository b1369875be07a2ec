"""Signs of life that ranks leave in their store, and what follows from those that others left, or did not."""

import os
import sys
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ddp_agent.distributed.c10d import Store


@dataclass(frozen=True)
class Sign:
    begun: int  # the last step that the rank's loop has begun
    promise: int | None  # the step beyond which it will begin none until all have agreed where to stop


class Signs:
    """Rank 0 looks at all ranks and the others at rank 0, so that n ranks cost the store 2 n requests a round."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._watched = [other for other in (range(world_size) if rank == 0 else [0]) if other != rank]
        self._seen: dict[int, tuple[str, float]] = {}
        self._count = 0
        self._namespace = _namespace()
        self._beside: dict[int, int] = {}
        store.set(f"place/{rank}", f"{self._namespace} {os.getpid()}")
        self.show(Sign(0, None))

    def show(self, sign: Sign) -> None:
        self._count += 1
        promise = "" if sign.promise is None else sign.promise
        self._store.set(f"sign/{self._rank}", f"{self._count} {sign.begun} {promise}")

    def of_all(self) -> list[Sign]:
        return [_parsed(text) for text in self._texts(range(self._world_size))]

    def silent(self, limit_s: float) -> tuple[int, int, str] | None:
        """A watched rank that has shown nothing new for longer than that, where it was, and what is known of it."""
        now = time.monotonic()
        for rank, text in zip(self._watched, self._texts(self._watched), strict=True):
            before, since = self._seen.get(rank, ("", now))
            self._seen[rank] = (text, since if text == before else now)
            silent_s = now - self._seen[rank][1]
            if silent_s > limit_s:
                begun = _parsed(text).begun
                return rank, begun, f"no sign of life for {silent_s:.0f} s, last seen in step {begun}"
        return None

    def dead(self) -> tuple[int, int, str] | None:
        """The same of a rank whose process this one would see, but it is gone."""
        for rank, pid in self._processes_beside().items():
            if _dead(pid):
                (text,) = self._texts([rank])
                begun = _parsed(text).begun
                return rank, begun, f"died without a word, last seen in step {begun}; torchrun tells by which signal"
        return None

    def _processes_beside(self) -> dict[int, int]:
        if not self._beside:
            told = self._store.multi_get([f"place/{rank}" for rank in range(self._world_size)])
            places = [place.decode().rpartition(" ") for place in told]
            self._beside = {rank: int(pid) for rank, (where, _, pid) in enumerate(places) if where == self._namespace}
        return self._beside

    def _texts(self, ranks: Iterable[int]) -> list[str]:
        keys = [f"sign/{rank}" for rank in ranks]
        return [text.decode() for text in self._store.multi_get(keys)] if keys else []


def _parsed(text: str) -> Sign:
    _, begun, promise = text.split(" ")
    return Sign(int(begun), int(promise) if promise else None)


def _namespace() -> str:
    """The same for processes that see each other's ids; unique where that cannot be known."""
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
    return state in "ZX"  # a zombie, or about to be none
