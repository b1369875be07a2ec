"""The collectives that sync modes and reducers use. Every implementation counts its bytes where it sends them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
from torch import Tensor

from ddp_agent.distributed.ledger import CommStats, Ledger

Op = Literal["sum", "min", "max"]


class Pending(Protocol):
    """A collective under way."""

    def wait(self) -> None:
        """Block until the tensor holds the result (on CUDA: for work queued from then on). Raises CommError."""


class Comm(ABC):
    """Collectives among `size` ranks, of which this one is `rank`. They raise CommError when a peer is lost.

    Tensors must be contiguous; a trailing `_` means that the tensor is changed in place. `device` is where tensors
    must live. Every rank of the group makes the same calls in the same order.
    """

    rank: int
    size: int
    device: torch.device
    ledger: Ledger

    @abstractmethod
    def start_all_reduce_(self, tensor: Tensor, op: Op = "sum") -> Pending:
        """Start an all-reduce that runs while this rank computes. `tensor` must not be touched until `wait`."""

    @abstractmethod
    def broadcast_(self, tensor: Tensor, source: int = 0) -> None:
        """Copy the tensor of rank `source` of this group to all ranks."""

    @abstractmethod
    def start_all_gather(self, tensor: Tensor) -> tuple[Tensor, Pending]:
        """Start to gather all ranks' tensors. After `wait`, row r of the returned tensor is that of rank r.

        Shapes and dtypes must agree. `tensor` must not be changed until `wait`.
        """

    @abstractmethod
    def start_all_to_all(self, tensor: Tensor) -> tuple[Tensor, Pending]:
        """Start to send row r of `tensor` to rank r. After `wait`, row r of the returned tensor is what rank r sent."""

    @abstractmethod
    def exchange(self, tensor: Tensor, receivers: Sequence[int], senders: Sequence[int]) -> list[Tensor]:
        """Send `tensor` to each of `receivers`. Return what each of `senders` sent, in their order.

        Both name other ranks of this group, each once. Every sender must name this rank as a receiver.
        """

    @abstractmethod
    def split(self, partition: Sequence[Sequence[int]]) -> "Comm | None":
        """Return the group of this rank out of disjoint lists of this group's ranks, or None if no list holds it.

        The groups share `ledger`. Every rank of the world must call it with the same lists.
        """

    def all_reduce_(self, tensor: Tensor, op: Op = "sum") -> None:
        """Replace `tensor` by the sum, minimum or maximum over all ranks."""
        self.start_all_reduce_(tensor, op).wait()

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in rank order. Shapes and dtypes must agree."""
        gathered, pending = self.start_all_gather(tensor)
        pending.wait()
        return list(gathered.unbind(0))

    def barrier(self) -> None:
        """Return when every rank has called it. Not counted as traffic."""
        with self.ledger.uncounted():
            self.all_reduce_(torch.zeros(1, device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def stats(self) -> CommStats:
        """The counters of all groups of this world."""
        return self.ledger.stats

    def uncounted(self) -> AbstractContextManager[None]:
        """Return a context in which no group of this world counts traffic. See `Ledger.uncounted`."""
        return self.ledger.uncounted()


def mean_(tensor: Tensor, comm: Comm) -> None:
    """Replace `tensor` by its exact mean over ranks. A collective."""
    comm.all_reduce_(tensor)
    tensor.div_(comm.size)


class _Done:
    """The collective of a rank that is alone."""

    def wait(self) -> None:
        pass


class LocalComm(Comm):
    """A rank that is alone: every collective is a no-op and counts nothing."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.rank, self.size = 0, 1
        self.device = torch.device("cpu")
        self.ledger = ledger or Ledger()

    def start_all_reduce_(self, tensor: Tensor, op: Op = "sum") -> Pending:
        return _Done()

    def broadcast_(self, tensor: Tensor, source: int = 0) -> None:
        pass

    def start_all_gather(self, tensor: Tensor) -> tuple[Tensor, Pending]:
        return tensor.clone().unsqueeze(0), _Done()

    def start_all_to_all(self, tensor: Tensor) -> tuple[Tensor, Pending]:
        return tensor.clone(), _Done()

    def exchange(self, tensor: Tensor, receivers: Sequence[int], senders: Sequence[int]) -> list[Tensor]:
        return []

    def split(self, partition: Sequence[Sequence[int]]) -> Comm:
        return self
