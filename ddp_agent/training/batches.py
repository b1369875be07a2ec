"""The micro-batches of one rank."""

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch

from ddp_agent.config.options import Options
from ddp_agent.data.loader import Batch, Share, micro_batches
from ddp_agent.data.sample_order import Order
from ddp_agent.data.task import Data


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A rank's share of the training samples, step by step."""

    data: Data
    order: Order
    share: Share
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the data."""
        return math.ceil(self.order.samples / (self.share.samples * self.share.world_size))

    def steps(self, first: int, last: int) -> Generator[Batch]:
        """Yield inputs and targets of all micro-batches from step `first` to step `last`, inclusive.

        Closing the generator ends the processes that read ahead.
        """
        return micro_batches(self.data, self.order, self.share, steps=range(first, last + 1), device=self.device)


def share_of(options: Options, rank: int, ranks: int) -> Share:
    """Return a rank's part of every step's `global_batch_size` samples."""
    accumulation = options.accumulation_steps
    return Share(rank, ranks, options.global_batch_size // (accumulation * ranks), accumulation)
