"""Shards of few classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.data.slicing.base import SampleAttributes, Shards, assign_keys


@dataclass(kw_only=True)
class ByLabel(Shards):
    """Every class belongs to one rank: the hardest split, in which no rank ever sees what another does."""

    def cut(self, samples: SampleAttributes, ranks: int, generator: torch.Generator) -> list[Tensor]:
        if samples.labels is None:
            raise ValueError("name: found ByLabel, but this data has no classes; use iid, contiguous or by_group")
        if (labels := len(samples.labels.unique())) < ranks:
            raise ValueError(
                f"name: found ByLabel for {labels} classes among {ranks} ranks, expected a class or more for each: use "
                f"at most {labels} ranks, or slicing=dirichlet"
            )
        return assign_keys(samples.labels, ranks, generator)
