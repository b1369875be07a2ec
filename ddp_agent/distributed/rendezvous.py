"""The store that ranks share before there is a process group, and the number of the attempt."""

import functools
import os
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta

from ddp_agent.distributed.c10d import HashStore, PrefixStore, Store, TCPStore
from ddp_agent.distributed.process import EARLIER_ATTEMPTS, TorchrunEnvironment

# Ranks of one run may start this far apart: imports from a cold network disk take minutes.
ARRIVAL_TIMEOUT_S = 600.0
POLL_S = 0.01


@dataclass(frozen=True)
class Rendezvous:
    """One rank's connection to the store."""

    store: Store
    environment: TorchrunEnvironment

    def agree(self, key: str, proposal: str) -> str:
        """Return the first proposal for `key`, on every rank and in every attempt of one torchrun."""
        return self.store.compare_set(key, "", proposal).decode()

    @functools.cached_property
    def attempt(self) -> int:
        """The number of restarts before this attempt, equal on all ranks. Waits for all of them at first use.

        Restarts of a sweep's job count too. TORCHELASTIC_RESTART_COUNT does not serve: on several nodes only the node
        that failed counts. So rank 0 counts, and answers each rank under a key that only this process can have chosen.
        """
        if self.environment.rank == 0:
            attempt = self.store.add("attempts", 1) - 1 + int(os.environ.get(EARLIER_ATTEMPTS, "0"))
            self._answer_others(attempt)
            return attempt
        question = uuid.uuid4().hex
        self.store.set(f"question/{self.environment.rank}", question)
        self.store.wait([f"answer/{question}"], timedelta(seconds=ARRIVAL_TIMEOUT_S))
        attempt = int(self.store.get(f"answer/{question}"))
        self.store.set(f"arrived/{attempt}/{self.environment.rank}", "")
        return attempt

    def _answer_others(self, attempt: int) -> None:
        missing = set(range(1, self.environment.world_size))
        deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
        while missing:
            for rank in sorted(missing):
                if self.store.check([f"question/{rank}"]):  # perhaps of an earlier attempt: nobody reads that answer
                    self.store.set(f"answer/{self.store.get(f'question/{rank}').decode()}", str(attempt))
                if self.store.check([f"arrived/{attempt}/{rank}"]):
                    missing.discard(rank)
            if time.monotonic() > deadline:
                raise TimeoutError(f"ranks {sorted(missing)} did not start within {ARRIVAL_TIMEOUT_S:g} s")
            time.sleep(POLL_S)


@functools.cache
def connect() -> Rendezvous:
    """Join torchrun's store. If torchrun serves none, rank 0 opens it. Without torchrun the store is local."""
    environment = TorchrunEnvironment.read()
    if environment is None:
        return Rendezvous(HashStore(), TorchrunEnvironment())
    served_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        environment.world_size,
        is_master=environment.rank == 0 and not served_by_torchrun,
        timeout=timedelta(seconds=ARRIVAL_TIMEOUT_S),
        wait_for_workers=False,
    )
    return Rendezvous(PrefixStore("ddp_agent", store), environment)
