"""Averaging in eight bits per number."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.config.fields import PositiveInt
from ddp_agent.reducers.common.quantised import Quantised


@dataclass(kw_only=True)
class Int8(Quantised):
    """8-bit integers with a scale per block: about a quarter of fp32's bytes, with error feedback."""

    block: PositiveInt = 256

    @property
    def block_length(self) -> int:
        return self.block

    @property
    def code_bytes(self) -> int:
        return self.block

    def encode(self, blocks: Tensor, last: int) -> tuple[Tensor, Tensor]:
        """Round to multiples of scale = largest magnitude / 127."""
        low, high = blocks.aminmax(dim=-1)
        scales = (torch.maximum(high, -low) / 127).to(torch.float32)
        scales.masked_fill_(~scales.isfinite(), torch.nan)  # times any code it stays NaN
        # A subnormal scale is too coarse: quotients would exceed 127. Its block waits in the residual.
        scales.masked_fill_(scales < torch.finfo(torch.float32).tiny, 0)
        divisors = scales.masked_fill(scales == 0, 1)
        return (blocks / divisors.unsqueeze(-1)).round_().to(torch.int8).view(torch.uint8), scales

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        return codes.view(torch.int8).to(scales.dtype).mul_(scales.unsqueeze(-1))
