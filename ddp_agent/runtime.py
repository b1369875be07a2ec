"""The process group of a run, its device, its log and its random streams.

Why not `torch.distributed.init_process_group()` alone: it uses torchrun's store bare. That store outlives a restart
(`--max-restarts`), so a second group reads the addresses that the first one left there and dies or hangs. Here every
group gets a prefix of its own, made of the attempt and a name.
"""

import functools
import hashlib
import logging
import os
import random
import socket
import sys
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore  # typed there, and only there

from ddp_agent.comm import CommError
from ddp_agent.errors import ConfigError, NonFiniteError, PeerFailedError, PreemptedError, RefusedError
from ddp_agent.place import EARLIER_ATTEMPTS, Place
from ddp_agent.redaction import scrubbed
from ddp_agent.watch import NullWatch, Watch

# Ranks of one run may be this far apart when they start: imports from a cold network disk take minutes.
ARRIVAL_TIMEOUT_S = 600.0
LEAVE_TIMEOUT_S = 30.0
POLL_S = 0.01

log = logging.getLogger(__name__)
_starts: Counter[str] = Counter()


@dataclass(frozen=True)
class Rendezvous:
    """The store that all ranks of a run reach before there is a process group."""

    store: Store
    place: Place

    def agree(self, key: str, proposal: str) -> str:
        """The same answer on every rank, and on every attempt of one torchrun: the first proposal wins."""
        return self.store.compare_set(key, "", proposal).decode()

    @functools.cached_property
    def attempt(self) -> int:
        """0, then 1, 2, … after restarts, those of a sweep's job included; the same on all ranks. Waits for all.

        TORCHELASTIC_RESTART_COUNT does not do: on several nodes only the node that failed counts. So rank 0
        counts, and answers each rank under a key that only this process of that rank can have asked for.
        """
        if self.place.rank == 0:
            attempt = self.store.add("attempts", 1) - 1 + int(os.environ.get(EARLIER_ATTEMPTS, "0"))
            self._answer_others(attempt)
            return attempt
        question = uuid.uuid4().hex
        self.store.set(f"question/{self.place.rank}", question)
        self.store.wait([f"answer/{question}"], timedelta(seconds=ARRIVAL_TIMEOUT_S))
        attempt = int(self.store.get(f"answer/{question}"))
        self.store.set(f"arrived/{attempt}/{self.place.rank}", "")
        return attempt

    def _answer_others(self, attempt: int) -> None:
        missing = set(range(1, self.place.world_size))
        deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
        while missing:
            for rank in sorted(missing):
                if self.store.check([f"question/{rank}"]):  # perhaps an old one: nobody reads that answer
                    self.store.set(f"answer/{self.store.get(f'question/{rank}').decode()}", str(attempt))
                if self.store.check([f"arrived/{attempt}/{rank}"]):
                    missing.discard(rank)
            if time.monotonic() > deadline:
                raise TimeoutError(f"ranks {sorted(missing)} did not start within {ARRIVAL_TIMEOUT_S:g} s")
            time.sleep(POLL_S)


@functools.cache
def connect() -> Rendezvous:
    """Joins the store that torchrun opened; without torchrun's, rank 0 opens it; without ranks, it is local."""
    place = Place.read()
    if place is None:
        return Rendezvous(HashStore(), Place())
    served_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        place.world_size,
        is_master=place.rank == 0 and not served_by_torchrun,
        timeout=timedelta(seconds=ARRIVAL_TIMEOUT_S),
        wait_for_workers=False,
    )
    return Rendezvous(PrefixStore("ddp_agent", store), place)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a rank trains with. Use it as a context manager, or call `stop` when all ranks are done."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    attempt: int
    device: torch.device
    backend: str
    store: Store | None = field(default=None, repr=False, compare=False)  # None: the group is someone else's
    watch: Watch | NullWatch = field(default_factory=NullWatch, repr=False, compare=False)

    def stop(self) -> None:
        """Returns when all ranks have called it: one that leaves early closes connections its peers still read."""
        if self.store is not None:
            with suppress(dist.DistError):  # a peer that never comes: leave without it
                if self.store.add("leaving", 1) == self.world_size:
                    self.store.set("left", "")
                self.store.wait(["left"], timedelta(seconds=LEAVE_TIMEOUT_S))
        self._leave()

    def _leave(self) -> None:
        if self.store is not None and dist.is_initialized():
            dist.destroy_process_group()
        self.watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, PreemptedError):
            self.stop()
            return
        cause = self._cause(error)
        if self.backend == "nccl":  # its group would wait for peers that may hang, and the process is about to end
            self.watch.close()
        else:
            self._leave()
        if cause:
            raise cause from error

    def _cause(self, error: BaseException) -> PeerFailedError | None:
        """The peer's failure that this rank's is an echo of, after the peers have been told of this one."""
        refused = isinstance(error, RefusedError)
        echo = isinstance(error, CommError | dist.DistError) or (
            isinstance(error, NonFiniteError) and error.rank is None
        )
        code = error.exit_code if isinstance(error, RefusedError) else PeerFailedError.exit_code
        text = str(error) if refused else f"{type(error).__name__}: {error}"
        first = self.watch.fail(text, code, echo=echo)
        if first is None or (first.rank == self.rank and not (echo and first.mute)):
            return None
        if first.rank == self.rank:  # cut off from whoever could tell
            return PeerFailedError(first.rank, first.text, first.code, first.step)
        if isinstance(error, PeerFailedError) or not refused:
            self.watch.linger()
        if refused and not echo:
            return None
        return PeerFailedError(first.rank, first.text, first.code, first.step)


def start(device: str = "auto", timeout_s: float = 600.0, job: str = "train") -> Runtime:
    """Starts the default process group: NCCL when every rank has a GPU of its own, else gloo.

    One rank alone gets a group too, since DistributedDataParallel asks for one. `device` is auto, cpu or cuda;
    ConfigError when it asks for a GPU that is not there. A collective fails after `timeout_s`.
    """
    rendezvous = connect()
    place = rendezvous.place
    _starts[job] += 1  # every rank starts the same groups in the same order
    store = PrefixStore(f"group/{rendezvous.attempt}/{job}/{_starts[job]}", rendezvous.store)
    chosen = _device(device, place)
    backend = _backend(chosen, place, store)
    if place.single_node:
        _stay_on_loopback()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    watched = PrefixStore("watch", store.clone())  # a connection of its own: the main thread may wait on the other
    watch = Watch(watched, rank=place.rank, world_size=place.world_size, timeout_s=timeout_s)
    dist.init_process_group(
        backend,
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=chosen if backend == "nccl" else None,
    )
    watch.start()
    return Runtime(
        rank=place.rank,
        local_rank=place.local_rank,
        world_size=place.world_size,
        local_world_size=place.local_world_size,
        node_rank=place.node_rank,
        attempt=rendezvous.attempt,
        device=chosen,
        backend=backend,
        store=store,
        watch=watch,
    )


def _device(wanted: str, place: Place) -> torch.device:
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and gpus == 0:
        raise ConfigError("device: found 'cuda', but torch sees no GPU; use device=cpu or device=auto")
    return torch.device("cuda", place.local_rank % gpus) if gpus else torch.device("cpu")


def _backend(device: torch.device, place: Place, store: Store) -> str:
    """NCCL refuses two ranks on one GPU, so ranks compare GPUs first. Gloo takes a detour through host memory."""
    store.set(f"gpu/{place.rank}", _identity(device))
    gpus = [gpu.decode() for gpu in store.multi_get([f"gpu/{rank}" for rank in range(place.world_size)])]
    if "" not in gpus and len(set(gpus)) == place.world_size:
        return "nccl"
    if any(gpus) and place.rank == 0:
        shared = len(set(gpus) - {""})
        log.warning("%d ranks on %d GPUs: gloo instead of NCCL, slower", place.world_size, shared)
    return "gloo"


def _identity(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return f"{socket.gethostname()}/{torch.cuda.get_device_properties(device).uuid}"


def _stay_on_loopback() -> None:
    """Sockets of a run on one machine need not be reachable from others, nor wait for its name to resolve."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)


def seed_everything(seed: int, rank: int | None = None) -> None:
    """Without `rank` all ranks draw alike (initial weights); with it, each its own stream (dropout, augmentation)."""
    name = str(seed) if rank is None else f"{seed}/{rank}"  # hashed: seed 0 of rank 1 is not seed 1 of rank 0
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    random.seed(value)
    torch.manual_seed(value)  # every GPU too


class _Console(logging.StreamHandler[TextIO]):
    """Looks `sys.stdout` up at each record: a live progress bar replaces it for a while."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return prefix + scrubbed(record.getMessage())


class _File(logging.Formatter):
    """Without secrets, which an error's text or traceback may quote."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


def setup_logging(run_dir: Path, rank: int) -> None:
    """Rank 0: `train.log` and the console. Others: warnings and errors, in a file made for the first of them."""
    name = "train.log" if rank == 0 else f"train.rank{rank}.log"
    file = logging.FileHandler(run_dir / name, encoding="utf-8", delay=rank != 0)
    file.setFormatter(_File("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        handlers=[file, _Console()] if rank == 0 else [file],
        force=True,
    )
    logging.captureWarnings(True)
