"""Collectives of `torch.distributed`. No other file calls them, so that every byte is counted where it is sent.

`wire_bytes` of a collective: 2 (n - 1) / n of the payload for an all-reduce, (n - 1) / n for an all-to-all, (n - 1)
times the payload for an all-gather, all of it per receiver for an exchange. A broadcast costs its source the payload
once (the source sends it down a pipeline) and the other ranks nothing.
"""

from collections.abc import Hashable, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_agent.distributed.comm import Comm, LocalComm, Op, Pending
from ddp_agent.distributed.ledger import CudaTimer, Ledger, Timer, Wait

_OPS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}


class _Counted:
    """A collective whose waiting time is booked. `copy`: where the result is wanted, and where it arrives."""

    __slots__ = ("_copy", "_ledger", "_record", "_work")

    def __init__(
        self, ledger: Ledger, work: dist.Work, record: Wait | None, copy: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self._ledger, self._work, self._record, self._copy = ledger, work, record, copy

    def wait(self) -> None:
        with self._ledger.blocked(self._record):
            self._work.wait()
            if self._copy:
                wanted, arrived = self._copy
                wanted.copy_(arrived)


class ProcessGroupComm(Comm):
    """Collectives of one process group of torch.

    With NCCL tensors must live on the GPU and the host does not wait: time is taken by events on the compute stream.
    `account` is the key of this group's records in `ledger` (default: this object).
    """

    def __init__(self, group: dist.ProcessGroup, ledger: Ledger | None = None, account: Hashable | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        nccl = dist.get_backend(group) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        self.ledger = ledger or Ledger(CudaTimer() if nccl else Timer())
        self._account = account or (self if self.size > 1 else None)  # a rank alone waits for nobody

    def split(self, partition: Sequence[Sequence[int]]) -> Comm | None:
        own = None
        ranks = dist.get_process_group_ranks(self.group)
        for part in partition:
            group = dist.new_group([ranks[rank] for rank in part])
            if self.rank in part:
                own = ProcessGroupComm(cast(dist.ProcessGroup, group), self.ledger)
        return own

    def start_all_reduce_(self, tensor: Tensor, op: Op = "sum") -> Pending:
        record = self.ledger.launch(self._account, tensor, 2 * (self.size - 1) / self.size)
        work = dist.all_reduce(tensor, _OPS[op], group=self.group, async_op=True)
        return _Counted(self.ledger, work, record)

    def broadcast_(self, tensor: Tensor, source: int = 0) -> None:
        record = self.ledger.launch(self._account, tensor, 1.0 if self.rank == source and self.size > 1 else 0.0)
        with self.ledger.blocked(record):
            dist.broadcast(tensor, group=self.group, group_src=source)

    def start_all_gather(self, tensor: Tensor) -> tuple[Tensor, Pending]:
        record = self.ledger.launch(self._account, tensor, self.size - 1)
        mine = tensor.to(self.device)
        gathered = mine.new_empty(self.size, *tensor.shape)
        work = dist.all_gather(list(gathered.unbind(0)), mine, group=self.group, async_op=True)
        return self._under_way(work, record, gathered, tensor.device)

    def start_all_to_all(self, tensor: Tensor) -> tuple[Tensor, Pending]:
        record = self.ledger.launch(self._account, tensor, (self.size - 1) / self.size)
        mine = tensor.to(self.device)
        received = torch.empty_like(mine)
        work = dist.all_to_all_single(received, mine, group=self.group, async_op=True)
        return self._under_way(cast(dist.Work, work), record, received, tensor.device)

    def exchange(self, tensor: Tensor, receivers: Sequence[int], senders: Sequence[int]) -> list[Tensor]:
        if not (receivers or senders):
            return []
        mine = tensor.to(self.device)
        received = [torch.empty_like(mine) for _ in senders]
        record = self.ledger.launch(self._account, tensor, 1.0, messages=len(receivers), senders=senders)
        # Receives go first. Gloo sends when the receiver has announced that it is ready, and on a slow link this
        # announcement would queue behind all that this rank sends (1.8 MB to two ranks, 100 Mbit/s: 0.29 s, not 0.18).
        operations = [
            *(
                dist.P2POp(dist.irecv, other, group=self.group, group_peer=peer)
                for peer, other in zip(senders, received, strict=True)
            ),
            *(dist.P2POp(dist.isend, mine, group=self.group, group_peer=peer) for peer in receivers),
        ]
        with self.ledger.blocked(record):
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            return [other.to(tensor.device) for other in received]

    def _under_way(
        self, work: dist.Work, record: Wait | None, result: Tensor, device: torch.device
    ) -> tuple[Tensor, Pending]:
        """Return the result on `device`. Gloo reduces and broadcasts tensors of a GPU, but gathers on the CPU only."""
        if result.device == device:
            return result, _Counted(self.ledger, work, record)
        wanted = torch.empty_like(result, device=device)
        return wanted, _Counted(self.ledger, work, record, (wanted, result))


def world_comm() -> Comm:
    """Return the ranks of the default process group, or a rank alone when no group was started."""
    return ProcessGroupComm(cast(dist.ProcessGroup, dist.group.WORLD)) if dist.is_initialized() else LocalComm()


def process_group(comm: Comm) -> dist.ProcessGroup | None:
    """Return the process group behind `comm`, for code of torch that needs one. None when there is none."""
    return comm.group if isinstance(comm, ProcessGroupComm) else None


def twin(comm: Comm) -> Comm:
    """Return a second group of the same ranks, on the CPU and with a ledger of its own.

    A second thread needs it: its collectives must not mix with those of `comm`. Every rank must call it.
    """
    group = process_group(comm)
    if group is None:
        return LocalComm()
    ranks = dist.get_process_group_ranks(group)
    return ProcessGroupComm(cast(dist.ProcessGroup, dist.new_group(ranks, backend="gloo")))
