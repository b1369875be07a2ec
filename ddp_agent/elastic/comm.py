"""A Comm whose ranks change between meetings."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import cast

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store  # typed there, and only there
from torch.distributed import distributed_c10d

from ddp_agent.distributed.comm import Comm, CommError, Op, Pending, Wait

CONNECT_S = 20.0  # for members that have just said that they are there


class ElasticComm(Comm):
    """Alone (rank 0 of 1, all collectives are no-ops) but inside `meeting`.

    Its group is torch's default one, made anew for every set of ranks: torchft's reconfigurable group is unknown to
    torch.distributed, whose functions for peers refuse it.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__(None)
        self._timeout_s = timeout_s
        self._made = (0, 1)  # rank and size
        self._begun: list[Pending] = []

    def connect(self, store: Store, rank: int, size: int) -> None:
        """Forms a group with the ranks that do the same on a store of this group alone. Raises CommError."""
        self.close()
        self._made = (rank, size)
        super().take_waits()  # those of the new group begin together
        if size == 1:
            return
        patience = timedelta(seconds=min(CONNECT_S, self._timeout_s))
        try:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
            _set_timeout(timedelta(seconds=self._timeout_s))
        except (RuntimeError, ValueError) as error:  # ValueError: a group half made
            raise CommError(str(error)) from error

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Inside, collectives are among the ranks that are connected."""
        self.rank, self.size = self._made
        self.group = cast(dist.ProcessGroup, dist.group.WORLD) if self.size > 1 else None
        try:
            yield
        finally:
            self._rest()
            self.group, self.rank, self.size = None, 0, 1

    def _rest(self) -> None:
        """Returns when nothing writes into a tensor any more: one collective may have failed before another ends."""
        with self.uncounted():
            for pending in self._begun:
                with suppress(CommError):
                    pending.wait()
        self._begun.clear()

    def start_all_reduce_(self, tensor: Tensor, op: Op = "sum") -> Pending:
        pending = super().start_all_reduce_(tensor, op)
        self._begun.append(pending)
        return pending

    def take_waits(self) -> list[Wait]:
        return super().take_waits() if self.size > 1 else []

    def close(self) -> None:
        """Peers that are still in a collective hear of it at once."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _set_timeout(timeout: timedelta) -> None:
    """Of the default group's collectives; older torch has it under its other name."""
    setter = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout
    setter(timeout)
