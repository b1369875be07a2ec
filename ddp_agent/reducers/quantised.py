"""Every number in a few bits: a compressed all-reduce."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ddp_agent.comm import Comm
from ddp_agent.reducers.base import Finish
from ddp_agent.reducers.feedback import ErrorFeedback

SCALE_BYTES = 4  # fp32


@dataclass(kw_only=True)
class Quantised(ErrorFeedback, ABC):
    """A code for every number and an fp32 scale for every block of them, with error feedback in both phases.

    As in 1-bit Adam (Tang et al. 2021, arXiv:2102.02888): the tensor is padded with zeros to one chunk of whole blocks
    a rank; chunk r of everybody goes to rank r, which averages them, encodes the mean anew and gives it to everybody.
    All ranks decode the same bytes, so they hold the same bits. The sender keeps what the first encoding dropped
    (`residual`), the owner of a chunk what the second did (`second`).
    """

    kept: ClassVar[tuple[str, ...]] = ("residual", "second")

    second: Tensor | None = field(default=None, init=False, repr=False, compare=False)  # of this rank's chunk, unpadded

    @property
    @abstractmethod
    def block_length(self) -> int:
        """Numbers that share a scale."""

    @abstractmethod
    def encode(self, blocks: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[..., block_length] to codes, uint8 [..., bytes of a block], and fp32 scales [...].

        `lengths` [...] says how many numbers of each block are no padding. A block with a number that is not finite
        must decode to such numbers.
        """

    @abstractmethod
    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The numbers, [..., block_length], in the dtype of `scales` (not always fp32)."""

    def transmit(self, tensor: Tensor, residual: Tensor, comm: Comm) -> Finish:
        size, block = tensor.numel(), self.block_length
        blocks = -(-size // (comm.size * block))  # of a chunk
        share = self._share(tensor, comm)
        self.second = torch.zeros_like(share) if self.second is None else self.second.to(share)
        self._check_size("second residual (of this rank's share)", self.second, share.numel())
        second = self.second
        starts = torch.arange(comm.size * blocks, device=tensor.device) * block
        lengths = (size - starts).clamp_(0, block).view(comm.size, blocks)
        chunks = _padded(tensor, comm.size * blocks * block).view(comm.size, blocks, block)
        packets = self._pack(chunks, lengths)
        torch.sub(tensor, self._unpack(packets, blocks, tensor.dtype).view(-1)[:size], out=residual)
        received, pending = comm.start_all_to_all(packets)

        def finish() -> None:
            pending.wait()
            mean = self._unpack(received, blocks, tensor.dtype).mean(0, keepdim=True)
            mine, padding = mean.view(-1).tensor_split([second.numel()])
            mine.add_(second)
            padding.zero_()  # it may have been decoded to something else
            packet = self._pack(mean, lengths[comm.rank].unsqueeze(0))
            torch.sub(mine, self._unpack(packet, blocks, tensor.dtype).view(-1)[: second.numel()], out=second)
            gathered, all_gathered = comm.start_all_gather(packet[0])
            all_gathered.wait()
            tensor.copy_(self._unpack(gathered, blocks, tensor.dtype).view(-1)[:size])

        return finish

    def unsent(self, comm: Comm) -> Tensor:
        unsent = super().unsent(comm)
        if self.second is not None:  # which is missing in the mean, to which this rank adds 1/K
            self._share(unsent, comm).add_(self.second, alpha=comm.size)
        return unsent

    def _share(self, tensor: Tensor, comm: Comm) -> Tensor:
        """The part of a flat tensor that this rank averages: its chunk without padding, maybe nothing."""
        chunk = -(-tensor.numel() // (comm.size * self.block_length)) * self.block_length
        return tensor[comm.rank * chunk : (comm.rank + 1) * chunk]

    def _pack(self, chunks: Tensor, lengths: Tensor) -> Tensor:
        """[n, blocks, block_length] to one packet a chunk, uint8 [n, bytes]: all scales, then all codes."""
        codes, scales = self.encode(chunks, lengths)
        return torch.cat([scales.view(torch.uint8), codes.flatten(1)], dim=1)

    def _unpack(self, packets: Tensor, blocks: int, dtype: torch.dtype) -> Tensor:
        scales, codes = packets.split([SCALE_BYTES * blocks, packets.shape[1] - SCALE_BYTES * blocks], dim=1)
        # A copy of the scales: a view as fp32 must be aligned, and packets have any length.
        scales = scales.clone(memory_format=torch.contiguous_format).view(torch.float32).to(dtype)
        return self.decode(codes.unflatten(1, (blocks, -1)), scales)


def _padded(tensor: Tensor, size: int) -> Tensor:
    return tensor if tensor.numel() == size else torch.cat([tensor, tensor.new_zeros(size - tensor.numel())])
