"""Averaging of the largest numbers only."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.config.fields import PositiveFraction
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.traffic import Collective, Shapes, numbers
from ddp_agent.reducers.base import Finish
from ddp_agent.reducers.common.feedback import ErrorFeedback

SAMPLE = 2**16


@dataclass(kw_only=True)
class TopK(ErrorFeedback):
    """Each rank sends its largest numbers and their indices; error feedback sends the rest later (arXiv:1712.01887).

    A packet has the values in the tensor's dtype, then their int32 indices.
    """

    ratio: PositiveFraction  # share of the numbers

    def traffic(self, shapes: Shapes, itemsize: int, ranks: int) -> list[Collective]:
        packet = math.ceil(self.ratio * numbers(shapes)) * (itemsize + 4)
        return [Collective(kind="all_gather", payload_bytes=packet, ranks=ranks)]

    def transmit(self, tensor: Tensor, residual: Tensor, comm: Comm) -> Finish:
        if (size := tensor.numel()) >= 2**31:
            raise ValueError(f"{self}: found a tensor of {size} numbers, expected less than 2^31 (int32 indices)")
        count = math.ceil(self.ratio * size)
        indices = _largest(residual.abs(), count)
        values = residual[indices]
        residual.index_fill_(0, indices, 0)
        packet = torch.cat([values.view(torch.uint8), indices.to(torch.int32).view(torch.uint8)])
        gathered, pending = comm.start_all_gather(packet)

        def finish() -> None:
            pending.wait()
            tensor.zero_()
            # In rank order on every rank, so that all ranks hold the same bits.
            for received in gathered.unbind(0):
                # Copied: a view as a wider type must be aligned.
                theirs, places = (part.clone() for part in received.tensor_split([values.nbytes]))
                tensor.index_add_(0, places.view(torch.int32), theirs.view(tensor.dtype), alpha=1 / comm.size)

        return finish


def _largest(magnitudes: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest. NaN counts as the largest, so that it is never hidden."""
    if magnitudes.is_cpu and magnitudes.numel() > 16 * SAMPLE:
        # Four times as fast as a selection among all numbers: a sample estimates the limit, and if enough numbers lie
        # above it, the largest are among them. Not on a GPU: its selection is fast, and the host would have to wait.
        sample = magnitudes[:: magnitudes.numel() // SAMPLE]
        limit = sample.topk(min(len(sample), 10 + 3 * count * len(sample) // (2 * magnitudes.numel()))).values[-1]
        candidates = (~(magnitudes < limit)).nonzero().view(-1)
        if len(candidates) >= count:
            return candidates[magnitudes[candidates].topk(count, sorted=False).indices]
    return magnitudes.topk(count, sorted=False).indices
