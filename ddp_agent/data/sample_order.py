"""The order of the samples that a rank trains on: a pure function of seed, rank and position.

So a resume needs nothing but the step number, and every batch is full: it may straddle two epochs.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from ddp_agent.rng import mixed_seed


class Order(ABC):
    """An endless stream of sample indices on `device`. All ranks together take `samples` of them per epoch."""

    def __init__(self, samples: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.samples = samples
        self.seed = seed
        self.device = torch.device(device)
        # Only the newest permutation is kept: positions move forward.
        self._key: tuple[int, ...] | None = None
        self._permutation = torch.empty(0, dtype=torch.int64)

    @abstractmethod
    def first(self, step: int, share: int, rank: int, ranks: int) -> int:
        """Return the position of a rank's first sample in `step` (1-based), where each rank takes `share` per step."""

    @abstractmethod
    def take(self, start: int, count: int) -> Tensor:
        """Return the indices at the positions [start, start + count), int64."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """Return the same order with its indices on another device."""

    @abstractmethod
    def sha256(self, global_batch_size: int) -> str:
        """Return the hash of seed, sizes and two epochs.

        It is equal for runs whose ranks take the same samples in the same order.
        """

    def shards(self, epoch: int) -> list[Tensor] | None:
        """Return every rank's samples in an epoch, ascending; None where all ranks share one stream."""
        return None

    def _kept(self, key: tuple[int, ...]) -> Tensor:
        if key != self._key:
            self._key, self._permutation = key, _upload(self._drawn(key), self.device)
        return self._permutation

    @abstractmethod
    def _drawn(self, key: tuple[int, ...]) -> Tensor:
        """Return the permutation that belongs to `key`, on the CPU: the same for every device."""


class SampleOrder(Order):
    """One stream for all ranks: one permutation of all samples per epoch.

    With B = micro_batch x accumulation x world_size, step s takes the positions [(s - 1)B, sB), and each rank takes a
    piece of them. So the samples of a step do not depend on the number of ranks, and the order depends
    on the seed alone.
    """

    def first(self, step: int, share: int, rank: int, ranks: int) -> int:
        """Return the position in the stream of all ranks."""
        return ((step - 1) * ranks + rank) * share

    def take(self, start: int, count: int) -> Tensor:
        """Return the indices at the positions [start, start + count); a view within one epoch."""
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
        """Return the same order with its indices on another device."""
        return type(self)(self.samples, self.seed, device)

    def permutation(self, epoch: int) -> Tensor:
        """Return all samples in the order of one epoch."""
        return self._kept((epoch,))

    def sha256(self, global_batch_size: int) -> str:
        """Return the hash of seed, sizes and two epochs."""
        digest = hashlib.sha256(f"{self.seed}/{self.samples}/{global_batch_size}".encode())
        digest.update(SampleOrder(self.samples, self.seed).take(0, 2 * self.samples).numpy().data)
        return digest.hexdigest()

    def _drawn(self, key: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, key[0]))
        return torch.randperm(self.samples, generator=generator)


class ShardOrder(Order):
    """A rank's own stream: rounds through its shard, each in another permutation.

    All ranks take equally many samples per step, so a rank with a small shard begins its next round sooner. Where
    shards are `redrawn` for every epoch, epoch e of N samples has the positions [eN/K, (e + 1)N/K) (rounded down) on
    each of K ranks: within them, a rank goes round its shard of that epoch, or does not come to its end.
    """

    def __init__(
        self,
        shards: Callable[[int], list[Tensor]],
        samples: int,
        seed: int,
        device: torch.device | str = "cpu",
        *,
        rank: int,
        ranks: int,
        redrawn: bool,
    ) -> None:
        """`shards` returns every rank's samples in an epoch."""
        super().__init__(samples, seed, device)
        self.rank, self.ranks, self.redrawn = rank, ranks, redrawn
        self._shards_of, self._epoch, self._shards = shards, -1, list[Tensor]()

    def first(self, step: int, share: int, rank: int, ranks: int) -> int:
        """Return the position in the rank's own stream."""
        assert (rank, ranks) == (self.rank, self.ranks)
        return (step - 1) * share

    def take(self, start: int, count: int) -> Tensor:
        """Return the indices at the positions [start, start + count); a view within one round."""
        pieces = []
        while count > 0:
            epoch, begin, end = self._epoch_of(start)
            round_, offset = divmod(start - begin, len(self.shards(epoch)[self.rank]))
            piece = self._kept((epoch, round_))[offset : offset + (count if end is None else min(count, end - start))]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def to(self, device: torch.device) -> Self:
        """Return the same order with its indices on another device."""
        return self._on(device, self.rank)

    def shards(self, epoch: int) -> list[Tensor]:
        """Return every rank's samples in an epoch, ascending."""
        if epoch != self._epoch:
            self._epoch, self._shards = epoch, self._shards_of(epoch)
        return self._shards

    def sha256(self, global_batch_size: int) -> str:
        """Return the hash of seed, sizes and two epochs of all ranks."""
        digest = hashlib.sha256(f"{self.seed}/{self.samples}/{self.ranks}/{global_batch_size}".encode())
        for rank in range(self.ranks):
            order = self._on("cpu", rank)
            digest.update(order.shards(0)[rank].numpy().data)
            digest.update(order.take(0, -(-2 * self.samples // self.ranks)).numpy().data)
        return digest.hexdigest()

    def _on(self, device: torch.device | str, rank: int) -> Self:
        return type(self)(
            self._shards_of, self.samples, self.seed, device, rank=rank, ranks=self.ranks, redrawn=self.redrawn
        )

    def _epoch_of(self, position: int) -> tuple[int, int, int | None]:
        """Return the epoch of a position, and the positions at which that epoch begins and ends."""
        if not self.redrawn:
            return 0, 0, None
        epoch = ((position + 1) * self.ranks - 1) // self.samples
        return epoch, epoch * self.samples // self.ranks, (epoch + 1) * self.samples // self.ranks

    def _drawn(self, key: tuple[int, ...]) -> Tensor:
        epoch, round_ = key
        shard = self.shards(epoch)[self.rank]
        seed = mixed_seed(self.seed, round_, f"round of rank {self.rank} in epoch {epoch}")
        return shard[torch.randperm(len(shard), generator=torch.Generator().manual_seed(seed))]


def _upload(permutation: Tensor, device: torch.device) -> Tensor:
    """Return `permutation` on `device`, pinned on its way to a GPU so that the host does not wait for the copy."""
    if device.type == "cuda":
        permutation = permutation.pin_memory()
    return permutation.to(device, non_blocking=True)
