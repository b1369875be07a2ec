"""Shards as the samples are stored."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.data.slicing.base import SampleAttributes, Shards


@dataclass(kw_only=True)
class Contiguous(Shards):
    """Equal shards of samples that are stored side by side: the first to rank 0, and so on; later draws deal them out.

    What a file is sorted by (time, class, author) then tells the ranks apart.
    """

    def cut(self, samples: SampleAttributes, ranks: int, generator: torch.Generator) -> list[Tensor]:
        pieces = torch.arange(samples.count).tensor_split(ranks)
        if self.drawn == "once":
            return list(pieces)
        return [pieces[place] for place in torch.randperm(ranks, generator=generator).tolist()]
