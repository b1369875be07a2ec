"""The decision whether a round's result is kept by all replicas or by none. The coordinator's store takes it, once."""

import time
from collections.abc import Callable, Sequence

from ddp_agent.distributed.c10d import Store
from ddp_agent.elastic.quorum import Member, Quorum

FIRST_POLL_S = 0.002
LAST_POLL_S = 0.05
LOOK_S = 0.2  # between two looks at whether the missing voters are alive


class Votes:
    """One replica's votes. `silent(names)` returns those that have shown no heartbeat for too long."""

    def __init__(self, store: Store, name: str, silent: Callable[[Sequence[str]], list[str]]) -> None:
        self._store, self._name, self._silent = store, name, silent

    def vote(self, quorum: Quorum, voters: Sequence[Member], ok: bool) -> bool:
        """Report whether this replica has the result. Return the verdict."""
        self._store.set(f"vote/{quorum.key}/{self._name}", "")
        if not ok:
            self.undo(quorum)
        elif self._store.add(f"votes/{quorum.key}", 1) == len(voters):
            self._propose(quorum, "kept")
        return self.verdict(quorum, voters)

    def undo(self, quorum: Quorum) -> None:
        """Propose that the result is undone."""
        self._propose(quorum, "undone")

    def verdict(self, quorum: Quorum, voters: Sequence[Member]) -> bool:
        """Wait for the verdict. Return True when the result is kept. A voter without heartbeats votes against it."""
        looked, pause_s = time.monotonic(), FIRST_POLL_S
        while not self._store.check([f"verdict/{quorum.key}"]):
            time.sleep(pause_s)
            pause_s = min(1.1 * pause_s, LAST_POLL_S)
            if time.monotonic() > looked + LOOK_S:
                looked = time.monotonic()
                if self._silent([it.name for it in voters if not self._store.check([f"vote/{quorum.key}/{it.name}"])]):
                    self.undo(quorum)
        return self._store.get(f"verdict/{quorum.key}") == b"kept"

    def forget(self, quorum: Quorum, voters: Sequence[Member]) -> None:
        """Delete the votes of a round that all have left. The verdict stays: a voter may have been cut off."""
        for key in (f"votes/{quorum.key}", *(f"vote/{quorum.key}/{it.name}" for it in voters)):
            self._store.delete_key(key)

    def _propose(self, quorum: Quorum, verdict: str) -> None:
        self._store.compare_set(f"verdict/{quorum.key}", "", verdict)
