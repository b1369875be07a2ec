"""Which samples a step trains on, and how they reach the device.

The sample stream of a run is one seeded permutation after another, one an epoch. With
B = micro_batch x accumulation x world_size, step s (1-based) takes its positions [(s - 1)B, sB), and each
rank a piece of them. So the samples of a step do not depend on the number of ranks, the order depends on the
seed alone, a resume is a number, every batch is full, and a batch may straddle two epochs.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ddp_agent.errors import DataError

Batch = tuple[Tensor, Tensor]


class SampleOrder:
    """The sample index at every position of the stream; the indices live on `device`."""

    def __init__(self, samples: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.samples = samples
        self.seed = seed
        self.device = torch.device(device)
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def to(self, device: torch.device) -> "SampleOrder":
        """The same order, its indices on another device."""
        return SampleOrder(self.samples, self.seed, device)

    def take(self, start: int, count: int) -> Tensor:
        """Indices at the positions [start, start + count), int64."""
        epoch, offset = divmod(start, self.samples)
        indices = self.permutation(epoch)[offset : offset + count]
        if len(indices) == count:  # a view: the usual micro-batch copies nothing
            return indices
        pieces = [indices]
        while missing := count - sum(map(len, pieces)):
            epoch += 1
            pieces.append(self.permutation(epoch)[:missing])
        return torch.cat(pieces)

    def permutation(self, epoch: int) -> Tensor:
        """All samples, in the order of one epoch. Only the last one is kept, since positions move forward."""
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            drawn = torch.randperm(self.samples, generator=generator)  # on the CPU: the same for every device
            self._epoch, self._permutation = epoch, _upload(drawn, self.device)
        return self._permutation

    def sha256(self, global_batch_size: int) -> str:
        """Of seed, sizes and two epochs: equal for runs that take the same samples in the same order."""
        digest = hashlib.sha256(f"{self.seed}/{self.samples}/{global_batch_size}".encode())
        digest.update(SampleOrder(self.samples, self.seed).take(0, 2 * self.samples).numpy().data)
        return digest.hexdigest()


def mixed_seed(seed: int, epoch: int) -> int:
    """63 bits, hashed: with a sum, seed 0 in epoch 1 would repeat seed 1 in epoch 0."""
    digest = hashlib.sha256(f"sample order/{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _upload(permutation: Tensor, device: torch.device) -> Tensor:
    """Pinned on its way to a GPU, so that the host does not wait for the copy."""
    if device.type == "cuda":
        permutation = permutation.pin_memory()
    return permutation.to(device, non_blocking=True)


def micro_batches(
    dataset: Dataset[Any],
    order: SampleOrder,
    *,
    rank: int,
    world_size: int,
    micro_batch: int,
    accumulation: int,
    first_step: int,
    last_step: int,
    device: torch.device,
    workers: int,
) -> Iterator[Batch]:
    """Inputs and targets of a rank's micro-batches, from `first_step` to `last_step` inclusive, on `device`.

    A TensorDataset is moved there once and indexed there: host and device never wait for each other. Anything
    else is read ahead of its use by `workers` processes.
    """
    share = micro_batch * accumulation
    firsts = (((step - 1) * world_size + rank) * share for step in range(first_step, last_step + 1))
    starts = (start for first in firsts for start in range(first, first + share, micro_batch))
    if isinstance(dataset, TensorDataset):
        return _resident(dataset, order.to(device), starts, micro_batch)
    batches = (order.take(start, micro_batch).tolist() for start in starts)
    seed = mixed_seed(order.seed, (first_step - 1) * world_size + rank)
    return stream(dataset, batches, device=device, workers=workers, seed=seed)


def _resident(dataset: TensorDataset, order: SampleOrder, starts: Iterable[int], micro_batch: int) -> Iterator[Batch]:
    inputs, targets = (tensor.to(order.device) for tensor in dataset.tensors)
    for start in starts:
        indices = order.take(start, micro_batch)
        yield inputs.index_select(0, indices), targets.index_select(0, indices)


def stream(
    dataset: Dataset[Any], batches: Iterable[list[int]], *, device: torch.device, workers: int, seed: int = 0
) -> Iterator[Batch]:
    """The samples with the given indices, batch by batch.

    `seed` is for datasets that draw random numbers in workers. A worker's DataError is raised as it was.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # Without one of its own the loader draws from torch's generator, and a resumed run would differ.
        generator=torch.Generator().manual_seed(seed),
    )
    try:
        for inputs, targets in loader:
            yield inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
    except DataError as error:
        # A worker's comes with its traceback in the text; the last line is what a person can act on.
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None
