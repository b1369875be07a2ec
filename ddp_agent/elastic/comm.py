"""A Comm whose ranks change between rounds, and the transfer of state to replicas that join."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from ddp_agent.checkpoint import plain_state
from ddp_agent.distributed.c10d import Store
from ddp_agent.distributed.comm import Comm, LocalComm, Op, Pending
from ddp_agent.distributed.ledger import CommError, Ledger
from ddp_agent.distributed.process_group_comm import ProcessGroupComm
from ddp_agent.errors import CheckpointError

CONNECT_S = 20.0  # for participants that have just announced themselves


class ElasticComm(Comm):
    """A rank alone (rank 0 of 1, all collectives are no-ops), except inside `connected`.

    The group is torch's default one, made anew for every set of ranks. torchft's reconfigurable group is unknown to
    torch.distributed, whose functions between peers refuse it.
    """

    def __init__(self, timeout_s: float) -> None:
        self.ledger = Ledger()
        self._timeout_s = timeout_s
        self._alone = LocalComm(self.ledger)
        self._group: Comm = self._alone
        self._begun: list[Pending] = []
        self._use(self._alone)

    def _use(self, comm: Comm) -> None:
        self._current, self.rank, self.size, self.device = comm, comm.rank, comm.size, comm.device

    def connect(self, store: Store, rank: int, size: int) -> None:
        """Form a group with the ranks that connect to the same store, which no other group uses. Raises CommError."""
        self.close()
        self._group = self._alone
        self.ledger.take_waits(self)  # the new group starts without records, on all of its ranks
        if size == 1:
            return
        patience = timedelta(seconds=min(CONNECT_S, self._timeout_s))
        try:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
            # Older torch has the function under its other name.
            set_timeout = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout
            set_timeout(timedelta(seconds=self._timeout_s))
        except (RuntimeError, ValueError) as error:  # ValueError: a group half made
            raise CommError(str(error)) from error
        self._group = ProcessGroupComm(cast(dist.ProcessGroup, dist.group.WORLD), self.ledger, account=self)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Return a context in which collectives are among the ranks of the last `connect`."""
        self._use(self._group)
        try:
            yield
        finally:
            with self.ledger.uncounted():
                for pending in self._begun:  # one may have failed while another still writes into a tensor
                    with suppress(CommError):
                        pending.wait()
            self._begun.clear()
            self._use(self._alone)

    def close(self) -> None:
        """Close the connections. Peers that are still in a collective fail at once."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def start_all_reduce_(self, tensor: Tensor, op: Op = "sum") -> Pending:
        pending = self._current.start_all_reduce_(tensor, op)
        self._begun.append(pending)
        return pending

    def broadcast_(self, tensor: Tensor, source: int = 0) -> None:
        self._current.broadcast_(tensor, source)

    def start_all_gather(self, tensor: Tensor) -> tuple[Tensor, Pending]:
        return self._current.start_all_gather(tensor)

    def start_all_to_all(self, tensor: Tensor) -> tuple[Tensor, Pending]:
        return self._current.start_all_to_all(tensor)

    def exchange(self, tensor: Tensor, receivers: Sequence[int], senders: Sequence[int]) -> list[Tensor]:
        return self._current.exchange(tensor, receivers, senders)

    def split(self, partition: Sequence[Sequence[int]]) -> Comm:
        return self


def transfer(comm: ElasticComm, store: Store, rank: int, size: int, state: Mapping[str, Any] | None = None) -> Any:
    """Return rank 0's `state` on ranks 1 to size - 1 of a group of its own, loaded without unpickling.

    No mode's traffic: it is not counted. Raises CommError when a rank is lost, CheckpointError for what is no state.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    packed = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
    try:
        comm.connect(store, rank, size)
        with comm.connected(), comm.uncounted():
            length = torch.tensor(packed.numel())
            comm.broadcast_(length)
            if rank != 0:
                packed = torch.empty(int(length), dtype=torch.uint8)
            comm.broadcast_(packed)
            comm.barrier()
    finally:
        comm.close()
    if rank == 0:
        return state
    try:
        return plain_state.read(io.BytesIO(packed.numpy().tobytes()))
    except plain_state.NotPlainError as error:
        raise CheckpointError(f"the state of the other replicas: {error}") from error
