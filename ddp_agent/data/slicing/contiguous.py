"""Shards of neighbouring samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.data.slicing.base import SampleAttributes, Shards


@dataclass(kw_only=True)
class Contiguous(Shards):
    """Equal shards of samples that are stored side by side: the first shard to rank 0, the second to rank 1, and so on.

    Ranks then differ in the key by which a file is sorted: time, class, author. With drawn=every_epoch, every epoch
    assigns the same shards to ranks at random.
    """

    def cut(self, samples: SampleAttributes, ranks: int, generator: torch.Generator) -> list[Tensor]:
        """Return shards of neighbouring samples."""
        pieces = torch.arange(samples.count).tensor_split(ranks)
        if self.drawn == "once":
            return list(pieces)
        return [pieces[index] for index in torch.randperm(ranks, generator=generator).tolist()]
