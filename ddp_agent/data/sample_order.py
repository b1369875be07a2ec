"""Which sample stands where in the stream that a rank trains on: a pure function of seed, rank and position.

So a resume is a number, and every batch is full: it may straddle two epochs.
"""

import hashlib
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from ddp_agent.data.slicing.base import Shards, Slicing, Stock
from ddp_agent.data.task import Task
from ddp_agent.rng import mixed_seed


class Order(ABC):
    """`samples` make an epoch of all ranks together; the indices live on `device`."""

    def __init__(self, samples: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.samples = samples
        self.seed = seed
        self.device = torch.device(device)
        self._key: tuple[int, ...] | None = None  # of the permutation that is kept: positions move forward
        self._permutation = torch.empty(0, dtype=torch.int64)

    @abstractmethod
    def first(self, step: int, share: int, rank: int, ranks: int) -> int:
        """The position of a rank's first sample in a step (1-based) in which each rank takes `share` of them."""

    @abstractmethod
    def take(self, start: int, count: int) -> Tensor:
        """Indices at the positions [start, start + count), int64."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same order, its indices on another device."""

    @abstractmethod
    def sha256(self, global_batch_size: int) -> str:
        """Of seed, sizes and two epochs: equal for runs whose ranks take the same samples in the same order."""

    def _kept(self, key: tuple[int, ...]) -> Tensor:
        if key != self._key:
            self._key, self._permutation = key, _upload(self._drawn(key), self.device)
        return self._permutation

    @abstractmethod
    def _drawn(self, key: tuple[int, ...]) -> Tensor:
        """The permutation that belongs to `key`, on the CPU: the same for every device."""


class SampleOrder(Order):
    """One stream for all ranks: one permutation of all samples after another, one an epoch.

    With B = micro_batch x accumulation x world_size, step s takes its positions [(s - 1)B, sB), and each rank a piece
    of them. So the samples of a step do not depend on the number of ranks, and the order depends on the seed alone.
    """

    def first(self, step: int, share: int, rank: int, ranks: int) -> int:
        return ((step - 1) * ranks + rank) * share

    def take(self, start: int, count: int) -> Tensor:
        epoch, offset = divmod(start, self.samples)
        indices = self.permutation(epoch)[offset : offset + count]
        if len(indices) == count:  # a view: the usual micro-batch copies nothing
            return indices
        pieces = [indices]
        while missing := count - sum(map(len, pieces)):
            epoch += 1
            pieces.append(self.permutation(epoch)[:missing])
        return torch.cat(pieces)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.samples, self.seed, device)

    def permutation(self, epoch: int) -> Tensor:
        """All samples, in the order of one epoch."""
        return self._kept((epoch,))

    def sha256(self, global_batch_size: int) -> str:
        digest = hashlib.sha256(f"{self.seed}/{self.samples}/{global_batch_size}".encode())
        digest.update(SampleOrder(self.samples, self.seed).take(0, 2 * self.samples).numpy().data)
        return digest.hexdigest()

    def _drawn(self, key: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, key[0]))
        return torch.randperm(self.samples, generator=generator)


class ShardOrder(Order):
    """A rank's own stream: its shard in one permutation after another, a round each.

    All ranks take equally many samples a step, so a small shard comes round sooner. Where shards are drawn anew every
    epoch, an epoch of N samples has the positions [eN/K, (e + 1)N/K) (rounded down) on each of K ranks: in it, a rank
    goes round its shard of that epoch, or does not come to the end of it.
    """

    def __init__(
        self, slicing: Shards, stock: Stock, seed: int, rank: int, ranks: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(stock.count, seed, device)
        self.slicing, self.stock, self.rank, self.ranks = slicing, stock, rank, ranks
        self._epoch, self._shards = -1, list[Tensor]()

    def first(self, step: int, share: int, rank: int, ranks: int) -> int:
        assert (rank, ranks) == (self.rank, self.ranks)
        return (step - 1) * share

    def take(self, start: int, count: int) -> Tensor:
        pieces = []
        while count > 0:
            epoch, begin, end = self._epoch_of(start)
            round_, offset = divmod(start - begin, len(self.shards(epoch)[self.rank]))
            piece = self._kept((epoch, round_))[offset : offset + (count if end is None else min(count, end - start))]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.slicing, self.stock, self.seed, self.rank, self.ranks, device)

    def shards(self, epoch: int) -> list[Tensor]:
        """Every rank's samples in an epoch, in no particular order."""
        if epoch != self._epoch:
            self._epoch, self._shards = epoch, self.slicing.shards(self.stock, self.ranks, self.seed, epoch)
        return self._shards

    def sha256(self, global_batch_size: int) -> str:
        digest = hashlib.sha256(f"{self.seed}/{self.samples}/{self.ranks}/{global_batch_size}".encode())
        for rank in range(self.ranks):
            order = ShardOrder(self.slicing, self.stock, self.seed, rank, self.ranks)
            digest.update(order.shards(0)[rank].numpy().data)
            digest.update(order.take(0, -(-2 * self.samples // self.ranks)).numpy().data)
        return digest.hexdigest()

    def _epoch_of(self, position: int) -> tuple[int, int, int | None]:
        """The epoch of a position, where it begins, and where it ends."""
        if self.slicing.drawn == "once":
            return 0, 0, None
        epoch = ((position + 1) * self.ranks - 1) // self.samples
        return epoch, epoch * self.samples // self.ranks, (epoch + 1) * self.samples // self.ranks

    def _drawn(self, key: tuple[int, ...]) -> Tensor:
        epoch, round_ = key
        shard = self.shards(epoch)[self.rank]
        seed = mixed_seed(self.seed, round_, f"round of rank {self.rank} in epoch {epoch}")
        return shard[torch.randperm(len(shard), generator=torch.Generator().manual_seed(seed))]


def order_of(slicing: Slicing, stock: Stock, seed: int, rank: int, ranks: int) -> Order:
    """What a rank trains on, in which order."""
    if isinstance(slicing, Shards):
        return ShardOrder(slicing, stock, seed, rank, ranks)
    return SampleOrder(stock.count, seed)


def stock_of(task: Task) -> Stock:
    return Stock(count=task.data.train_count, labels=task.data.labels, groups=task.data.groups)


def _upload(permutation: Tensor, device: torch.device) -> Tensor:
    """Pinned on its way to a GPU, so that the host does not wait for the copy."""
    if device.type == "cuda":
        permutation = permutation.pin_memory()
    return permutation.to(device, non_blocking=True)
