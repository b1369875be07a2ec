"""The process group of a run and its device, and the agreement of ranks before it.

Why not `torch.distributed.init_process_group()` alone: it uses torchrun's store bare. That store outlives a restart
(`--max-restarts`), so a second group reads the addresses that the first one left there and dies or hangs. Here every
group gets a prefix of its own, made of the attempt and a name.
"""

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist

from ddp_agent.distributed.c10d import PrefixStore
from ddp_agent.distributed.failure_detector import FailureDetector
from ddp_agent.distributed.failure_report import ECHOES, VERDICTS, Failure, kind_of, origin_of
from ddp_agent.distributed.process import TorchrunEnvironment
from ddp_agent.distributed.rendezvous import ARRIVAL_TIMEOUT_S, connect, ranks
from ddp_agent.distributed.run_secret import SignedStore
from ddp_agent.distributed.standstill import long_s
from ddp_agent.errors import ConfigError, PeerFailedError, PreemptedError, RefusedError, UnreachableError

WARN_S = 60.0  # while ranks wait for one that does not start its group
POLL_S = 0.05
LEAVE_TIMEOUT_S = 30.0
# A collective fails later than the failure detector's last limit, which knows the rank that is waited for. torch knows
# only who waits: gloo's error names the rank that raised it, and NCCL's watchdog ends that rank's process.
COLLECTIVE_MARGIN_S = 60.0

log = logging.getLogger(__name__)
_starts: Counter[str] = Counter()


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One rank's process group and device. Use it as a context manager, or call `stop` when all ranks are done."""

    rank: int
    world_size: int
    local_world_size: int
    attempt: int
    device: torch.device
    backend: str
    values: SignedStore | None = field(default=None, repr=False, compare=False)  # None: the group is someone else's
    failure_detector: FailureDetector = field(default_factory=FailureDetector.alone, repr=False, compare=False)

    def stop(self) -> None:
        """End the group when all ranks have called this: a rank that leaves early closes connections in use."""
        self.failure_detector.progress.leave()
        if self.values is not None:
            with suppress(dist.DistError, TimeoutError):  # a peer that never comes: leave without it
                self.values.set(f"leaving/{self.rank}", "yes")
                if self.rank == 0:
                    for rank in range(self.world_size):
                        self.values.wait(f"leaving/{rank}", str, LEAVE_TIMEOUT_S)
                    self.values.set("left", "yes")
                self.values.wait("left", str, LEAVE_TIMEOUT_S)
        self._leave()

    def _leave(self) -> None:
        if self.values is not None and dist.is_initialized():
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
    that is silent or lets others wait is lost after `timeout_s`. `on_failure` is called on each rank that fails, with
    the failure that ends the run. Raises ConfigError when `device` asks for a GPU that is not there.
    """
    environment = (rendezvous := connect()).environment
    _starts[job] += 1  # every rank starts the same groups in the same order
    name = f"group/{rendezvous.attempt}/{job}/{_starts[job]}"
    store = PrefixStore(name, rendezvous.store)
    values = SignedStore(rendezvous.store, f"{name}/agreement")
    chosen = _device(device, environment)
    backend = _backend(chosen, environment, values, long_s(timeout_s))
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
        values=values,
        failure_detector=detector,
    )


def _device(wanted: str, environment: TorchrunEnvironment) -> torch.device:
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and gpus == 0:
        raise ConfigError("device: found 'cuda', but torch sees no GPU; use device=cpu or device=auto")
    return torch.device("cuda", environment.local_rank % gpus) if gpus else torch.device("cpu")


def _backend(device: torch.device, environment: TorchrunEnvironment, values: SignedStore, patience_s: float) -> str:
    """Return the backend. NCCL refuses two ranks on one GPU, so ranks compare GPUs first."""
    values.set(f"gpu/{environment.rank}", _identity(device))
    gpus = _gpus_of_all(environment, values, max(patience_s, ARRIVAL_TIMEOUT_S))
    if "" not in gpus and len(set(gpus)) == environment.world_size:
        return "nccl"
    if any(gpus) and environment.rank == 0:
        shared = len(set(gpus) - {""})
        log.warning("%d ranks on %d GPUs: gloo instead of NCCL, slower", environment.world_size, shared)
    return "gloo"


def _gpus_of_all(environment: TorchrunEnvironment, values: SignedStore, patience_s: float) -> list[str]:
    """Return the GPU of every rank. Raise UnreachableError with the ranks that do not come: one may read its data."""
    began, warned = time.monotonic(), False
    while True:
        gpus = {rank: values.get(f"gpu/{rank}", str) for rank in range(environment.world_size)}
        missing = {rank for rank, gpu in gpus.items() if gpu is None}
        if not missing:
            return [gpu for gpu in gpus.values() if gpu is not None]
        waited_s = time.monotonic() - began
        if waited_s > patience_s:
            raise UnreachableError(
                f"{ranks(missing)} did not come within {patience_s:.0f} s: still before training, where data is read"
            )
        if waited_s > WARN_S and not warned and environment.rank == 0:
            warned = True
            log.warning("%s still reads its data or builds its model; waiting up to %.0f s", ranks(missing), patience_s)
        time.sleep(POLL_S)


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
