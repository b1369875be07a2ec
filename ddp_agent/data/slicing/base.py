"""What every way of slicing the data has in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddp_agent.config.fields import check_fields
from ddp_agent.rng import mixed_seed

LOOKED_AT = 1000  # epochs, before the first: a millisecond each


@dataclass(frozen=True, kw_only=True)
class Stock:
    """What there is to slice: `count` samples, and, where they are known, their classes and whom they come from."""

    count: int
    labels: Tensor | None = None  # int64 [count], from 0
    groups: Tensor | None = None  # int64 [count], from 0


@dataclass(kw_only=True)
class Slicing:
    """Who trains on what. Without `Shards`, all on everything.

    `tasks`: of data with several tasks every rank trains all, or some; which, says `deal` (see `slicing.tasks`): in
    turn, by what they cost, or as listed for each rank.
    """

    tasks: Literal["replicate", "partition"] = "replicate"
    deal: Literal["round_robin", "by_cost"] | tuple[tuple[str, ...], ...] = "round_robin"

    def __post_init__(self) -> None:
        check_fields(self)

    def problems(self, stock: Stock, ranks: int, seed: int, epochs: int) -> Iterator[str]:
        """What keeps `ranks` from sharing these samples for so many epochs, and what would help; a line each."""
        yield from ()


@dataclass(kw_only=True)
class Shards(Slicing, ABC):
    """Every sample belongs to one rank: for the whole run, or, drawn anew, for an epoch."""

    drawn: Literal["once", "every_epoch"] = "once"

    def shards(self, stock: Stock, ranks: int, seed: int, epoch: int) -> list[Tensor]:
        """Indices of each rank's samples, int64, ascending. The same on every rank, device and machine.

        Raises ValueError, beginning with the key that is to blame, when the samples cannot be shared so.
        """
        drawn = 0 if self.drawn == "once" else epoch
        generator = torch.Generator().manual_seed(mixed_seed(seed, drawn, "shards"))
        found = [shard.sort().values for shard in self.cut(stock, ranks, generator)]
        if empty := [str(rank) for rank, shard in enumerate(found) if not len(shard)]:
            raise ValueError(self.nothing_left(empty, ranks))
        return found

    @abstractmethod
    def cut(self, stock: Stock, ranks: int, generator: torch.Generator) -> list[Tensor]:
        """A partition of the indices 0 to count - 1, one part a rank."""

    def nothing_left(self, empty: list[str], ranks: int) -> str:
        """What to say when ranks `empty` got no sample."""
        which = f"ranks {', '.join(empty)} of {ranks}"
        return f"name: found {type(self).__name__}, which leaves {which} without samples; use fewer ranks"

    def problems(self, stock: Stock, ranks: int, seed: int, epochs: int) -> Iterator[str]:
        if ranks > stock.count:
            return  # told already, and no way of slicing would help
        for epoch in range(min(epochs, LOOKED_AT) if self.drawn == "every_epoch" else 1):
            try:
                self.shards(stock, ranks, seed, epoch)
            except ValueError as error:
                yield f"slicing.{error}"
                return


def dealt(keys: Tensor, ranks: int, generator: torch.Generator) -> list[Tensor]:
    """All samples of a key to one rank: keys come in a random order, each to who has least so far.

    So sizes differ by at most what the commonest key has, and with as many keys as ranks, or more, no rank stays empty.
    """
    present, counts = keys.unique(return_counts=True)
    owner = torch.zeros(int(keys.max()) + 1, dtype=torch.int64)
    load = [0] * ranks
    for place in torch.randperm(len(present), generator=generator).tolist():
        rank = load.index(min(load))
        load[rank] += int(counts[place])
        owner[present[place]] = rank
    owners = owner[keys]
    return [(owners == rank).nonzero().flatten() for rank in range(ranks)]
