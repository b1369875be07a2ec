"""Shards with uneven mixtures of classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.config.fields import PositiveFloat
from ddp_agent.data.slicing.base import SampleAttributes, Shards


@dataclass(kw_only=True)
class Dirichlet(Shards):
    """Each class is spread over the ranks in shares from a Dirichlet distribution (Li et al. 2022, arXiv:2102.02079).

    A small `alpha` gives most of a class to one rank, a large one gives equal shares. Shards differ in size, too.
    """

    alpha: PositiveFloat

    def cut(self, samples: SampleAttributes, ranks: int, generator: torch.Generator) -> list[Tensor]:
        """Return shards with random shares of each class. Raise ValueError for data without classes."""
        if samples.labels is None:
            raise ValueError("name: found Dirichlet, but this data has no classes; use iid, contiguous or by_group")
        parts: list[list[Tensor]] = [[] for _ in range(ranks)]
        for label in samples.labels.unique().tolist():
            members = (samples.labels == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            ends = (shares(self.alpha, ranks, generator).cumsum(0)[:-1] * len(members)).round().long()
            for part, piece in zip(parts, members.tensor_split(ends), strict=True):
                part.append(piece)
        return [torch.cat(part) for part in parts]

    def empty_shards(self, empty: list[str], ranks: int) -> str:
        """Return the error for ranks `empty`, with a larger alpha as the first remedy."""
        return (
            f"alpha: found {self.alpha:g}, which leaves ranks {', '.join(empty)} of {ranks} without samples; use a "
            "larger alpha, fewer ranks or another seed"
        )


def shares(alpha: float, ranks: int, generator: torch.Generator) -> Tensor:
    """Return one draw [ranks] from the symmetric Dirichlet distribution, fp64.

    A draw consists of gamma variables, divided by their sum. Logarithms are used, since with alpha = 0.001 most gamma
    variables are below the smallest float: G(alpha) is distributed like G(alpha + 1) U^(1 / alpha).
    """
    above = torch._standard_gamma(torch.full((ranks,), alpha + 1, dtype=torch.float64), generator=generator)
    uniform = torch.rand(ranks, dtype=torch.float64, generator=generator)
    return (above.log() + uniform.log() / alpha).softmax(0)
