"""Shards that look alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.data.slicing.base import SampleAttributes, Shards


@dataclass(kw_only=True)
class IID(Shards):
    """Equal shards, drawn at random: each rank has a small picture of the whole."""

    def cut(self, samples: SampleAttributes, ranks: int, generator: torch.Generator) -> list[Tensor]:
        return list(torch.randperm(samples.count, generator=generator).tensor_split(ranks))
