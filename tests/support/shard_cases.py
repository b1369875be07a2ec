"""Slicings and data for their laws."""

from collections.abc import Iterator
from typing import Any

import torch
from configs import files, node
from torch import Tensor

from ddp_agent.config.registry import build
from ddp_agent.data.slicing.base import SampleAttributes

CPU = torch.device("cpu")
SHARDED = [name for name in files("slicing") if name != "shared"]
DRAWN = ("once", "every_epoch")


def sliced(name: str, **values: Any) -> Any:
    return build("slicing", node("slicing", name, **values))


def attributes(count: int, classes: int = 4, groups: int = 6, seed: int = 0) -> SampleAttributes:
    """Every class and every group is there, in uneven numbers."""
    generator = torch.Generator().manual_seed(seed)

    def uneven(kinds: int) -> Tensor:
        drawn = (kinds * torch.rand(count, generator=generator) ** 2).long()
        drawn[:kinds] = torch.arange(kinds)
        return drawn[torch.randperm(count, generator=generator)]

    return SampleAttributes(count=count, labels=uneven(classes), groups=uneven(groups))


def cases(seeds: int) -> Iterator[tuple[SampleAttributes, int, int]]:
    """Attributes, a number of ranks, and a seed."""
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        count = int(torch.randint(12, 200, (), generator=generator))
        ranks = int(torch.randint(1, 5, (), generator=generator))
        yield attributes(count, seed=seed), ranks, seed


def shards_of(
    name: str, samples: SampleAttributes, ranks: int, seed: int, epoch: int = 0, **values: Any
) -> list[Tensor]:
    if name == "dirichlet":
        values = {"alpha": 3.0} | values  # a small one leaves ranks without samples
    found: list[Tensor] = sliced(name, **values).shards(samples, ranks, seed, epoch)
    return found
