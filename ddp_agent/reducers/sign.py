"""Averaging in one bit per number."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.reducers.common.quantised import Quantised

BLOCK = 1024


@dataclass(kw_only=True)
class Sign(Quantised):
    """Signs, and one magnitude per 1024 numbers: 3 % of fp32's bytes. A majority vote with error feedback."""

    @property
    def block_length(self) -> int:
        return BLOCK

    @property
    def code_bytes(self) -> int:
        return BLOCK // 8

    def encode(self, blocks: Tensor, last: int) -> tuple[Tensor, Tensor]:
        """Use the mean magnitude as scale. Bit i of byte j is 1 if number 128 i + j is positive or zero."""
        scales = torch.linalg.vector_norm(blocks, ord=1, dim=-1) / BLOCK
        scales[-1] *= BLOCK / last
        bits = (blocks >= 0).view(torch.uint8).unflatten(-1, (8, -1))
        codes = bits[:, 0].clone()
        for i in range(1, 8):
            codes |= bits[:, i] << i
        return codes, scales.to(torch.float32)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        places = torch.tensor([[1 << i] for i in range(8)], dtype=torch.uint8, device=codes.device)
        positive = (codes.unsqueeze(1) & places).flatten(1) > 0
        return positive.to(scales.dtype).mul_(2).sub_(1).mul_(scales.unsqueeze(-1))
