"""The process group of a run and its device, and the agreement of ranks before it.

Why not `torch.distributed.init_process_group()` alone: it uses torchrun's store bare. That store outlives a restart
(`--max-restarts`), so a second group reads the addresses that the first one left there and dies or hangs. Here every
group gets a prefix of its own, made of the attempt and a name.
"""

import functools
import logging
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist

from ddp_agent.distributed.c10d import HashStore, PrefixStore, Store, TCPStore
from ddp_agent.distributed.failure_detector import FailureDetector
from ddp_agent.distributed.failure_report import ECHOES, VERDICTS, Failure, kind_of, origin_of
from ddp_agent.distributed.process import EARLIER_ATTEMPTS, TorchrunEnvironment
from ddp_agent.distributed.run_secret import SignedStore, prefix
from ddp_agent.distributed.standstill import long_s
from ddp_agent.errors import ConfigError, PeerFailedError, PreemptedError, RefusedError

# Ranks of one run may start this far apart: imports from a cold network disk take minutes.
ARRIVAL_TIMEOUT_S = 600.0
POLL_S = 0.01
LEAVE_TIMEOUT_S = 30.0
# A collective fails later than the failure detector's last limit, which knows the rank that is waited for. torch knows
# only who waits: gloo's error names the rank that raised it, and NCCL's watchdog ends that rank's process.
COLLECTIVE_MARGIN_S = 60.0

log = logging.getLogger(__name__)
_starts: Counter[str] = Counter()


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
            attempt = self.store.add("attempts", 1) - 1 + int(os.environ.get(EARLIER_ATTEMPTS) or 0)
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
    return Rendezvous(PrefixStore(prefix("ddp_agent"), store), environment)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One rank's process group and device. Use it as a context manager, or call `stop` when all ranks are done."""

    rank: int
    world_size: int
    local_world_size: int
    attempt: int
    device: torch.device
    backend: str
    store: Store | None = field(default=None, repr=False, compare=False)  # None: the group is someone else's
    failure_detector: FailureDetector = field(default_factory=FailureDetector.alone, repr=False, compare=False)

    def stop(self) -> None:
        """End the group when all ranks have called this: a rank that leaves early closes connections in use."""
        self.failure_detector.progress.leave()
        if self.store is not None:
            with suppress(dist.DistError):  # a peer that never comes: leave without it
                if self.store.add("leaving", 1) == self.world_size:
                    self.store.set("left", "")
                self.store.wait(["left"], timedelta(seconds=LEAVE_TIMEOUT_S))
        self._leave()

    def _leave(self) -> None:
        if self.store is not None and dist.is_initialized():
            dist.destroy_process_group()
        self.failure_detector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, PreemptedError):
            self.stop()
            return
        cause = self._report(error)
        if self.backend == "nccl":  # its group would wait for peers that may hang, and the process is about to end
            self.failure_detector.close()
        else:
            self._leave()
        if cause:
            raise cause from error

    def _report(self, error: BaseException) -> PeerFailedError | None:
        """Report this rank's failure to the peers. Return the peer failure that caused it, or None if it started here.

        Lingers where torchrun must see the cause end before this rank.
        """
        kind = kind_of(error)
        code = error.exit_code if isinstance(error, RefusedError) else PeerFailedError.exit_code
        text = str(error) if isinstance(error, RefusedError) else f"{type(error).__name__}: {error}"
        first = self.failure_detector.fail(text, code, echo=kind in ECHOES)
        verdict = VERDICTS[kind, origin_of(first, self.rank)]
        if verdict.linger:
            self.failure_detector.linger()
        return first.as_error() if verdict.raise_first else None


def start(
    device: str = "auto",
    timeout_s: float = 600.0,
    job: str = "train",
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Runtime:
    """Start the default process group: NCCL when every rank has a GPU of its own, else gloo.

    A rank that is alone gets a group too, since DistributedDataParallel needs one. `device`: auto, cpu or cuda. A rank
    that is silent, or stands still while others wait for it, is lost after `timeout_s`. `on_failure` is called on each
    rank that fails, with the failure that ends the run. Raises ConfigError when `device` asks for a GPU that is not
    there.
    """
    rendezvous = connect()
    environment = rendezvous.environment
    _starts[job] += 1  # every rank starts the same groups in the same order
    name = f"group/{rendezvous.attempt}/{job}/{_starts[job]}"
    store = PrefixStore(name, rendezvous.store)
    chosen = _device(device, environment)
    backend = _backend(chosen, environment, store)
    if environment.single_node:
        _stay_on_loopback()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    detector = FailureDetector(
        # A connection of its own: the main thread may wait on the other.
        SignedStore(rendezvous.store.clone(), f"{name}/failures"),
        rank=environment.rank,
        world_size=environment.world_size,
        timeout_s=timeout_s,
        on_failure=on_failure,
    )
    dist.init_process_group(
        backend,
        store=store,
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timedelta(seconds=long_s(timeout_s) + COLLECTIVE_MARGIN_S),
        device_id=chosen if backend == "nccl" else None,
    )
    detector.start()
    return Runtime(
        rank=environment.rank,
        world_size=environment.world_size,
        local_world_size=environment.local_world_size,
        attempt=rendezvous.attempt,
        device=chosen,
        backend=backend,
        store=store,
        failure_detector=detector,
    )


def _device(wanted: str, environment: TorchrunEnvironment) -> torch.device:
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and gpus == 0:
        raise ConfigError("device: found 'cuda', but torch sees no GPU; use device=cpu or device=auto")
    return torch.device("cuda", environment.local_rank % gpus) if gpus else torch.device("cpu")


def _backend(device: torch.device, environment: TorchrunEnvironment, store: Store) -> str:
    """Return the backend. NCCL refuses two ranks on one GPU, so ranks compare GPUs first."""
    store.set(f"gpu/{environment.rank}", _identity(device))
    gpus = [gpu.decode() for gpu in store.multi_get([f"gpu/{rank}" for rank in range(environment.world_size)])]
    if "" not in gpus and len(set(gpus)) == environment.world_size:
        return "nccl"
    if any(gpus) and environment.rank == 0:
        shared = len(set(gpus) - {""})
        log.warning("%d ranks on %d GPUs: gloo instead of NCCL, slower", environment.world_size, shared)
    return "gloo"


def _identity(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return f"{socket.gethostname()}/{torch.cuda.get_device_properties(device).uuid}"


def _stay_on_loopback() -> None:
    """Keep the sockets of a run on one machine from other machines, and from waiting for its name to resolve."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
