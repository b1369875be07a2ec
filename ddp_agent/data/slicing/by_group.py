"""Shards of whole speakers or users."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.data.slicing.base import SampleAttributes, Shards, assign_keys


@dataclass(kw_only=True)
class ByGroup(Shards):
    """All samples of a speaker or user to one rank, as in federated learning, where data stay with their owners."""

    def cut(self, samples: SampleAttributes, ranks: int, generator: torch.Generator) -> list[Tensor]:
        """Return shards of whole groups. Raise ValueError for data without groups or with too few."""
        if samples.groups is None:
            raise ValueError(
                "name: found ByGroup, but this data does not say whom its samples come from; use iid, contiguous, "
                "by_label or dirichlet"
            )
        if (groups := len(samples.groups.unique())) < ranks:
            raise ValueError(
                f"name: found ByGroup for {groups} groups among {ranks} ranks, expected a group or more for each: use "
                f"at most {groups} ranks"
            )
        return assign_keys(samples.groups, ranks, generator)
