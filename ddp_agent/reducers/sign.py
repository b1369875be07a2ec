"""The mean in one bit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.reducers.quantised import Quantised

BLOCK = 1024


@dataclass(kw_only=True)
class Sign(Quantised):
    """Only signs are sent, and a magnitude for each 1024: 3 % of fp32's bytes. Majority vote with error feedback."""

    @property
    def block_length(self) -> int:
        return BLOCK

    def encode(self, blocks: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Scale = mean magnitude. Bit i of byte j says whether number 128 i + j is positive or zero."""
        magnitudes = torch.linalg.vector_norm(blocks, ord=1, dim=-1)
        bits = (blocks >= 0).view(torch.uint8).unflatten(-1, (8, -1))
        codes = bits[..., 0, :].clone()
        for i in range(1, 8):
            codes |= bits[..., i, :] << i
        return codes, (magnitudes / lengths.clamp(min=1)).to(torch.float32)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        places = torch.tensor([[1 << i] for i in range(8)], dtype=torch.uint8, device=codes.device)
        positive = (codes.unsqueeze(-2) & places).flatten(-2) > 0
        scales = scales.unsqueeze(-1)
        return torch.where(positive, scales, -scales)
