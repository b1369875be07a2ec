"""Shards of whole classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.data.slicing.base import SampleAttributes, Shards, assign_keys


@dataclass(kw_only=True)
class ByLabel(Shards):
    """All samples of a class to one rank: the hardest split, in which ranks have no class in common."""

    def cut(self, samples: SampleAttributes, ranks: int, generator: torch.Generator) -> list[Tensor]:
        """Return shards of whole classes. Raise ValueError for data without classes or with too few."""
        if samples.labels is None:
            raise ValueError("name: found ByLabel, but this data has no classes; use iid, contiguous or by_group")
        if (labels := len(samples.labels.unique())) < ranks:
            raise ValueError(
                f"name: found ByLabel for {labels} classes among {ranks} ranks, expected a class or more for each: use "
                f"at most {labels} ranks, or slicing=dirichlet"
            )
        return assign_keys(samples.labels, ranks, generator)
