"""Quantised all-reduce: every number travels in a few bits."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.traffic import Collective, Shapes, numbers
from ddp_agent.reducers.base import Finish
from ddp_agent.reducers.common.feedback import ErrorFeedback

SCALE_BYTES = 4  # fp32
PIECE = 2**20  # numbers that are encoded at once: large fresh tensors cost more than the arithmetic


@dataclass(kw_only=True)
class Quantised(ErrorFeedback, ABC):
    """A code per number and an fp32 scale per block of numbers, with error feedback in both phases.

    As in 1-bit Adam (Tang et al. 2021, arXiv:2102.02888): the tensor is padded to one chunk of whole blocks per rank.
    Rank r receives chunk r of every rank, averages the chunks, encodes the mean and sends it to all ranks. All ranks
    decode the same bytes, so they hold the same bits. The sender keeps the error of the first encoding (`residual`),
    the owner of a chunk that of the second (`second`).
    """

    kept: ClassVar[tuple[str, ...]] = ("residual", "second")

    second: Tensor | None = field(default=None, init=False, repr=False, compare=False)  # for this rank's unpadded chunk

    @property
    @abstractmethod
    def block_length(self) -> int:
        """The number of numbers that share a scale."""

    @property
    @abstractmethod
    def code_bytes(self) -> int:
        """The bytes of a block, without its scale."""

    @abstractmethod
    def encode(self, blocks: Tensor, last: int) -> tuple[Tensor, Tensor]:
        """Encode blocks [n, block_length]. Return codes, uint8 [n, code_bytes], and fp32 scales [n].

        The last block has `last` numbers, followed by zeros. A block with a number that is not finite must decode to
        numbers that are not finite. A block with scale 0 must decode to zeros.
        """

    @abstractmethod
    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return the numbers [n, block_length], in the dtype of `scales` (not always fp32)."""

    def traffic(self, shapes: Shapes, itemsize: int, ranks: int) -> list[Collective]:
        packet = -(-numbers(shapes) // (self.block_length * ranks)) * (SCALE_BYTES + self.code_bytes)
        return [
            Collective(kind="all_to_all", payload_bytes=packet * ranks, ranks=ranks),
            Collective(kind="all_gather", payload_bytes=packet, ranks=ranks, sharded=True),
        ]

    def transmit(self, tensor: Tensor, residual: Tensor, comm: Comm) -> Finish:
        blocks = -(-tensor.numel() // (comm.size * self.block_length))  # per chunk
        share = self._share(tensor, comm.rank, comm.size)
        second = torch.zeros_like(share) if self.second is None else self.second.to(share)
        self._check_size("second residual (of this rank's share)", second, share.numel())
        self.second = second
        packets = self._encoded(residual, comm.size, blocks)
        chunks = residual.split(max(1, blocks * self.block_length))  # fewer than ranks where the last have only padding
        for packet, chunk in zip(packets, chunks, strict=False):
            for part, values in self._decoded(packet, chunk):
                part.sub_(values)
        received, pending = comm.start_all_to_all(packets)

        def finish() -> None:
            pending.wait()
            for packet in received:
                for part, values in self._decoded(packet, second):
                    part.add_(values, alpha=1 / comm.size)
            mean = self._encoded(second, 1, blocks)
            for part, values in self._decoded(mean[0], second):
                part.sub_(values)
            gathered, all_gathered = comm.start_all_gather(mean[0])
            all_gathered.wait()
            for packet, chunk in zip(gathered, tensor.split(max(1, blocks * self.block_length)), strict=False):
                for part, values in self._decoded(packet, chunk):
                    part.copy_(values)

        return finish

    def unsent(self, comm: Comm) -> Tensor:
        unsent = super().unsent(comm)
        if self.second is not None:  # missing in the mean itself, of which `unsent` is one of K terms
            self._share(unsent, comm.rank, comm.size).add_(self.second, alpha=comm.size)
        return unsent

    def regroup(self, rank: int, size: int, new_size: int) -> None:
        """Move the error of this rank's chunk to its residual, since the chunks change. Nothing is lost."""
        super().regroup(rank, size, new_size)
        if self.residual is not None and self.second is not None:
            self._share(self.residual, rank, size).add_(self.second.to(self.residual), alpha=new_size)
        self.second = None

    def _share(self, tensor: Tensor, rank: int, size: int) -> Tensor:
        """Return the part of a flat tensor that a rank averages: its chunk without padding, perhaps empty."""
        chunk = -(-tensor.numel() // (size * self.block_length)) * self.block_length
        return tensor[rank * chunk : (rank + 1) * chunk]

    def _encoded(self, flat: Tensor, packets: int, blocks: int) -> Tensor:
        """Return uint8 [packets, bytes]: the scales of `blocks` blocks, then their codes. Pure padding stays zero."""
        codes = torch.zeros(packets * blocks, self.code_bytes, dtype=torch.uint8, device=flat.device)
        scales = torch.zeros(packets * blocks, dtype=torch.float32, device=flat.device)
        size, span = self.block_length, self._span
        done = 0
        for part in flat.split(span * size) if flat.numel() else ():
            padding = -part.numel() % size
            padded = torch.cat([part, part.new_zeros(padding)]) if padding else part
            here = slice(done, done := done + padded.numel() // size)
            codes[here], scales[here] = self.encode(padded.view(-1, size), size - padding)
        return torch.cat([scales.view(packets, blocks).view(torch.uint8), codes.view(packets, -1)], dim=1)

    def _decoded(self, packet: Tensor, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield part after part of `flat`, each with the numbers that the packet has for it."""
        blocks = packet.numel() // (SCALE_BYTES + self.code_bytes)
        # The scales are copied: a view as fp32 must be aligned, and packets have any length.
        scales = packet[: SCALE_BYTES * blocks].clone().view(torch.float32).to(flat.dtype)
        codes = packet[SCALE_BYTES * blocks :].view(blocks, self.code_bytes)
        parts = flat.split(self._span * self.block_length)  # fewer than in the packet, where that ends in padding
        for part, its_codes, its_scales in zip(parts, codes.split(self._span), scales.split(self._span), strict=False):
            yield part, self.decode(its_codes, its_scales).view(-1)[: part.numel()]

    @property
    def _span(self) -> int:
        """The number of blocks that are encoded at once."""
        return max(1, PIECE // self.block_length)
