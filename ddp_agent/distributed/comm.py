"""The only file that calls collectives, so that every byte is counted where it is sent.

`payload_bytes` is what this rank hands to collectives. `wire_bytes` is what it sends under a bandwidth-optimal
algorithm: 2 (n - 1) / n of the payload for an all-reduce, (n - 1) / n for an all-to-all, (n - 1) times it for an
all-gather, all of it for an exchange with peers, and for a broadcast what the source sends down a pipeline (once),
the others nothing.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

Op = Literal["sum", "min", "max"]

# 65,536 collectives of which nobody asked who came late take 10 MB; of those beyond nobody will know.
MAX_WAITS = 2**16

_OPS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}


Stamp = float | torch.cuda.Event


class CommError(RuntimeError):
    """A collective failed on this rank: a peer ended or hangs, or the link is down."""


@dataclass
class CommStats:
    """Traffic of one rank since the start; `blocked_s` is how long its compute stood still for it, `straggler_s` the
    part of that in which it waited for ranks that came later, as far as `stragglers.settle_` has been called."""

    calls: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0
    blocked_s: float = 0.0
    straggler_s: float = 0.0


@dataclass(slots=True)
class Wait:
    """When this rank launched a counted collective, and from when to when it stood still for it.

    `senders`: ranks of the group that it could wait for, None: all of them.
    """

    launched: Stamp
    began: Stamp | None = None
    ended: Stamp | None = None
    senders: Sequence[int] | None = None


class Pending(Protocol):
    """A collective under way. After `wait` the tensor holds the result (on CUDA: for work queued from then on)."""

    def wait(self) -> None: ...


class _Done:
    """The collective of a rank that is alone."""

    def wait(self) -> None:
        pass


class _Counted:
    """`arrival`: where the result is wanted, and where it arrives, when these differ."""

    def __init__(
        self, comm: "Comm", work: dist.Work, launch: Wait | None, arrival: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self._comm = comm
        self._work = work
        self._launch = launch
        self._arrival = arrival

    def wait(self) -> None:
        with self._comm.blocked(self._launch):
            self._work.wait()
            if self._arrival:
                wanted, arrived = self._arrival
                wanted.copy_(arrived)


class Comm:
    """Collectives among the ranks of one process group. Without a group: a rank alone, for which all are no-ops.

    Tensors are changed in place and must be contiguous. With NCCL they must live on the GPU, and the host does not
    wait: time is taken by events on the compute stream and added up by `settle`.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, stats: CommStats | None = None) -> None:
        self.group = group
        self.stats = CommStats() if stats is None else stats
        self.rank = dist.get_rank(group) if group else 0
        self.size = dist.get_world_size(group) if group else 1
        nccl = group is not None and dist.get_backend(group) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._waits: list[Wait] = []
        self._zero: tuple[float, torch.cuda.Event] | None = None
        self._counting = True

    @classmethod
    def world(cls) -> "Comm":
        """All ranks of the default process group, or a rank alone when none was started."""
        return cls(cast(dist.ProcessGroup, dist.group.WORLD) if dist.is_initialized() else None)

    def split(self, partition: Sequence[Sequence[int]]) -> "Comm":
        """The part that holds this rank, out of disjoint lists of global ranks. Every rank calls it alike."""
        if self.group is None:
            return self
        mine, _ = dist.new_subgroups_by_enumeration([list(part) for part in partition])
        return Comm(cast(dist.ProcessGroup, mine), self.stats)

    def among(self, ranks: Sequence[int]) -> "Comm | None":
        """Some ranks of the whole world, which this group is; None on the others. Every rank calls it alike."""
        if self.group is None:
            return self
        group = dist.new_group(list(ranks)) if len(ranks) > 1 else None
        return Comm(cast(dist.ProcessGroup | None, group), self.stats) if self.rank in ranks else None

    def twin(self) -> "Comm":
        """The same ranks in a group of its own, for a thread whose collectives must not meet those of this one; on the
        CPU, and counted by itself. Every rank calls it alike."""
        if self.group is None:
            return Comm()
        ranks = dist.get_process_group_ranks(self.group)
        return Comm(cast(dist.ProcessGroup, dist.new_group(ranks, backend="gloo")))

    def all_reduce_(self, tensor: Tensor, op: Op = "sum") -> None:
        self.start_all_reduce_(tensor, op).wait()

    def start_all_reduce_(self, tensor: Tensor, op: Op = "sum") -> Pending:
        """Begins an all-reduce that goes on while this rank computes; `tensor` must rest until `wait`."""
        if self.group is None:
            return _Done()
        launch = self._launch(tensor, 2 * (self.size - 1) / self.size)
        work = dist.all_reduce(tensor, _OPS[op], group=self.group, async_op=True)
        return _Counted(self, work, launch)

    def broadcast_(self, tensor: Tensor, source: int = 0) -> None:
        """`source` is a rank of this group."""
        if self.group is None:
            return
        launch = self._launch(tensor, 1.0 if self.rank == source and self.size > 1 else 0.0)
        with self.blocked(launch):
            dist.broadcast(tensor, group=self.group, group_src=source)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in rank order; shapes and dtypes must agree."""
        gathered, pending = self.start_all_gather(tensor)
        pending.wait()
        return list(gathered.unbind(0))

    def start_all_gather(self, tensor: Tensor) -> tuple[Tensor, Pending]:
        """After `wait`, row r of the first is rank r's tensor; this rank's must rest until then."""
        if self.group is None:
            return tensor.clone().unsqueeze(0), _Done()
        launch = self._launch(tensor, self.size - 1)
        mine = tensor.to(self.device)
        gathered = mine.new_empty(self.size, *tensor.shape)
        work = dist.all_gather(list(gathered.unbind(0)), mine, group=self.group, async_op=True)
        return self._under_way(work, launch, gathered, tensor.device)

    def start_all_to_all(self, tensor: Tensor) -> tuple[Tensor, Pending]:
        """Row r of `tensor` goes to rank r; after `wait`, row r of the first is what rank r sent here."""
        if self.group is None:
            return tensor.clone(), _Done()
        launch = self._launch(tensor, (self.size - 1) / self.size)
        mine = tensor.to(self.device)
        received = torch.empty_like(mine)
        work = dist.all_to_all_single(received, mine, group=self.group, async_op=True)
        return self._under_way(cast(dist.Work, work), launch, received, tensor.device)

    def exchange(self, tensor: Tensor, receivers: Sequence[int], senders: Sequence[int]) -> list[Tensor]:
        """Sends `tensor` to each of `receivers` and returns what each of `senders` sent, in their order.

        Ranks of this group other than this one, each once. Every sender must name this rank as a receiver.
        """
        if self.group is None or not (receivers or senders):
            return []
        mine = tensor.to(self.device)
        received = [torch.empty_like(mine) for _ in senders]
        launch = self._launch(tensor, 1.0, messages=len(receivers), senders=senders)
        # First what is to be received: gloo sends when the receiver has said that it is ready, and that word would
        # wait in a slow link behind all that this rank sends (1.8 MB to two ranks, 100 Mbit/s: 0.29 s instead of 0.18).
        operations = [
            *(
                dist.P2POp(dist.irecv, other, group=self.group, group_peer=peer)
                for peer, other in zip(senders, received, strict=True)
            ),
            *(dist.P2POp(dist.isend, mine, group=self.group, group_peer=peer) for peer in receivers),
        ]
        with self.blocked(launch):
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            return [other.to(tensor.device) for other in received]

    def _under_way(
        self, work: dist.Work, launch: Wait | None, result: Tensor, device: torch.device
    ) -> tuple[Tensor, Pending]:
        """On a GPU gloo reduces and broadcasts; all else it does on the CPU, and the result goes back to `device`."""
        if result.device == device:
            return result, _Counted(self, work, launch)
        wanted = torch.empty_like(result, device=device)
        return wanted, _Counted(self, work, launch, (wanted, result))

    def barrier(self) -> None:
        """Returns when every rank has called it; not traffic worth counting."""
        with self.uncounted():
            self.all_reduce_(torch.zeros(1, device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Measurement, evaluation and start-up traffic: sent, but no part of what a sync mode costs."""
        before, self._counting = self._counting, False
        try:
            yield
        finally:
            self._counting = before

    @contextmanager
    def blocked(self, launch: Wait | None = None) -> Iterator[None]:
        """Books the time inside as time this rank's compute stood still for communication. Raises CommError."""
        began = self._stamp() if self._counting else 0.0
        try:
            yield
        except RuntimeError as error:
            raise CommError(str(error)) from error
        if not self._counting:
            return
        ended = self._stamp()
        if launch:
            launch.began, launch.ended = began, ended
        if isinstance(began, float) and isinstance(ended, float):
            self.stats.blocked_s += ended - began
        else:
            self._events.append((cast(torch.cuda.Event, began), cast(torch.cuda.Event, ended)))

    def settle(self) -> CommStats:
        """The counters, with the time of CUDA events added. Waits for the GPU: call it at logging intervals."""
        for start, end in self._events:
            end.synchronize()
            self.stats.blocked_s += start.elapsed_time(end) / 1e3
        self._events.clear()
        return self.stats

    def take_waits(self) -> list[Wait]:
        """This group's counted collectives since the last call, the first `MAX_WAITS` of them, in launch order."""
        waits, self._waits = self._waits, []
        return waits

    def seconds(self, stamp: Stamp) -> float:
        """When it was, by this process's `time.perf_counter`. Waits for an event of the GPU."""
        if isinstance(stamp, float):
            return stamp
        if self._zero is None:
            zero = torch.cuda.Event(enable_timing=True)
            zero.record()
            zero.synchronize()
            self._zero = (time.perf_counter(), zero)
        stamp.synchronize()
        host_s, zero = self._zero
        return host_s + float(zero.elapsed_time(stamp)) / 1e3

    def _stamp(self) -> Stamp:
        """Now: for the host, or where a GPU's compute stream will be when all that is queued has been done."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _launch(
        self, tensor: Tensor, wire_factor: float, messages: int = 1, senders: Sequence[int] | None = None
    ) -> Wait | None:
        """Counts a collective that is about to begin."""
        if not self._counting:
            return None
        payload = tensor.numel() * tensor.element_size()
        self.stats.calls += messages
        self.stats.payload_bytes += messages * payload
        self.stats.wire_bytes += messages * round(payload * wire_factor)
        launch = Wait(self._stamp(), senders=senders)
        if len(self._waits) < MAX_WAITS:
            self._waits.append(launch)
        return launch
