"""Shards of random samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.data.slicing.base import SampleAttributes, Shards


@dataclass(kw_only=True)
class IID(Shards):
    """Equal shards of random samples: each has about the distribution of the whole data."""

    def cut(self, samples: SampleAttributes, ranks: int, generator: torch.Generator) -> list[Tensor]:
        """Return shards of random samples."""
        return list(torch.randperm(samples.count, generator=generator).tensor_split(ranks))
