"""The agreement of a run's ranks before their first process group."""

import functools
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from ddp_agent.distributed.c10d import HashStore, PrefixStore, Store, TCPStore
from ddp_agent.distributed.failure_report import STEPS, in_range
from ddp_agent.distributed.process import EARLIER_ATTEMPTS, TorchrunEnvironment
from ddp_agent.distributed.run_secret import SignedStore, prefix
from ddp_agent.errors import UnreachableError

T = TypeVar("T")

# Ranks of one run may start this far apart: imports from a cold network disk take minutes.
ARRIVAL_TIMEOUT_S = 600.0
POLL_S = 0.01
SHORT_TEXT = re.compile(r"[A-Za-z0-9_.:/+-]{1,200}")


def short_text(text: str) -> str:
    """Return a short text that is safe as a file name's part or a key. Raise ValueError for any other."""
    if not SHORT_TEXT.fullmatch(text):
        raise ValueError(f"found {text[:50]!r}, expected at most 200 letters, digits and ._:/+-")
    return text


@dataclass(frozen=True)
class Rendezvous:
    """One rank's connection to the store."""

    store: Store
    environment: TorchrunEnvironment

    @functools.cached_property
    def values(self) -> SignedStore:
        """The values by which ranks agree."""
        return SignedStore(self.store, "agreement")

    def agree(self, key: str, proposal: str, parse: Callable[[str], str] = short_text) -> str:
        """Return the first proposal for `key`, on every rank and in every attempt of one torchrun."""
        return self.values.first(key, proposal, parse)

    def from_rank_0(self, key: str, parse: Callable[[str], T]) -> T:
        """Return the value that rank 0 writes. Raise UnreachableError when it does not."""
        try:
            return self.values.wait(key, parse, ARRIVAL_TIMEOUT_S)
        except TimeoutError as error:
            raise UnreachableError(f"rank 0 did not start within {ARRIVAL_TIMEOUT_S:g} s") from error

    @functools.cached_property
    def attempt(self) -> int:
        """The number of restarts before this attempt, equal on all ranks. Waits for all of them at first use.

        Restarts of a sweep's job count too. TORCHELASTIC_RESTART_COUNT does not serve: on several nodes only the node
        that failed counts. So rank 0 counts, and answers each rank under a key that only this process can have chosen.
        """
        if self.environment.rank == 0:
            attempts = self.values.get("attempts", _count) or 0
            self.values.set("attempts", str(attempts + 1))
            attempt = attempts + int(os.environ.get(EARLIER_ATTEMPTS) or 0)
            self._answer_others(attempt)
            return attempt
        question = uuid.uuid4().hex
        self.values.set(f"question/{self.environment.rank}", question)
        attempt = self.from_rank_0(f"answer/{question}", _count)
        self.values.set(f"arrived/{attempt}/{self.environment.rank}", "yes")
        return attempt

    def _answer_others(self, attempt: int) -> None:
        missing = set(range(1, self.environment.world_size))
        deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
        while missing:
            for rank in sorted(missing):
                if question := self.values.get(f"question/{rank}", short_text):
                    self.values.set(
                        f"answer/{question}", str(attempt)
                    )  # perhaps of an earlier attempt: nobody reads it
                if self.values.get(f"arrived/{attempt}/{rank}", str):
                    missing.discard(rank)
            if time.monotonic() > deadline:
                raise UnreachableError(f"{ranks(missing)} did not start within {ARRIVAL_TIMEOUT_S:g} s")
            time.sleep(POLL_S)


@functools.cache
def connect() -> Rendezvous:
    """Join torchrun's store. If torchrun serves none, rank 0 opens it. Without torchrun the store is local.

    Raise UnreachableError when the store cannot be opened or reached.
    """
    environment = TorchrunEnvironment.read()
    if environment is None:
        return Rendezvous(HashStore(), TorchrunEnvironment())
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    served_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = environment.rank == 0 and not served_by_torchrun
    try:
        store = TCPStore(
            host,
            int(port),
            environment.world_size,
            is_master=serves,
            timeout=timedelta(seconds=ARRIVAL_TIMEOUT_S),
            wait_for_workers=False,
        )
    except (dist.DistError, OSError) as error:
        what = "rank 0 cannot open its store" if serves else "the ranks' store cannot be reached"
        reason = str(error).splitlines()[0]
        raise UnreachableError(
            f"MASTER_ADDR={host}, MASTER_PORT={port}: {what} ({reason}); expected an address of node 0 that every node "
            "reaches, and a port of it that is free and open"
        ) from error
    return Rendezvous(PrefixStore(prefix("ddp_agent"), store), environment)


def ranks(numbers: Sequence[int] | set[int]) -> str:
    """Return "rank 3" or "ranks 3, 4"."""
    few = sorted(numbers)[:8]
    text = ", ".join(map(str, few)) + (", …" if len(numbers) > len(few) else "")
    return f"rank{'s' * (len(numbers) != 1)} {text}"


def _count(text: str) -> int:
    return in_range(int(text), STEPS, "attempt")
