"""The agreement of all ranks on the step after which they stop."""

from ddp_agent.distributed.c10d import Store
from ddp_agent.distributed.heartbeat import HeartbeatListener


class StopAgreement:
    """One rank's view of the agreement. Its methods speak to the store, except `allows`; its fields are set by others.

    `request`: the signal and its rank, empty before. `promise`: this rank begins no step beyond it until `step`, the
    last step of all ranks, is known.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self.request = ""
        self.promise: int | None = None
        self.step: int | None = None
        self._store, self._rank = store, rank

    def allows(self, step: int) -> bool:
        """Return True when the loop may begin `step`, as far as is known."""
        limit = self.promise if self.step is None else self.step
        return limit is None or step <= limit

    def ask(self, signal_name: str) -> None:
        """Ask all ranks to stop. Only the first request counts."""
        self._store.compare_set("asked", "", f"{signal_name} on rank {self._rank}")

    def new_request(self) -> str:
        """Return the request if one came and is not yet in `request`, else an empty text."""
        if self.request or not self._store.check(["asked"]):
            return ""
        return self._store.get("asked").decode()

    def agreed_step(self, heartbeats: HeartbeatListener) -> int | None:
        """Return the step after which all stop, once all ranks have promised. Rank 0 decides it."""
        if self._rank == 0:
            promises = [heartbeat.promise for heartbeat in heartbeats.all()]
            made = [promise for promise in promises if promise is not None]
            if len(made) == len(promises):
                self._store.set("stop", str(max(made)))
        return int(self._store.get("stop")) if self._store.check(["stop"]) else None
