"""The interface of every way to slice the data."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor

from ddp_agent.config.fields import check_fields
from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.data.sample_order import Order, SampleOrder, ShardOrder
from ddp_agent.data.slicing.tasks import Deal, Owners, partition_problems, partitioned
from ddp_agent.data.task import Data
from ddp_agent.rng import mixed_seed

CHECKED_EPOCHS = 1000  # checked for empty shards before the run, at 1 ms per epoch


@dataclass(frozen=True, kw_only=True)
class SampleAttributes:
    """The number of training samples, and their classes and groups where they are known."""

    count: int
    labels: Tensor | None = None
    """Class of each sample, int64 [count], from 0."""
    groups: Tensor | None = None
    """Speaker or user of each sample, int64 [count], from 0."""

    @classmethod
    def of(cls, data: Data) -> Self:
        """Return the attributes of the training samples of `data`."""
        return cls(count=data.train_count, labels=data.labels, groups=data.groups)


@dataclass(kw_only=True)
class Slicing:
    """The samples and the tasks that each rank trains on. Without shards, all ranks share one stream of samples."""

    tasks: Literal["replicate", "partition"] = "replicate"
    """replicate: every rank trains every task. partition: each rank trains those that `deal` assigns to it."""
    deal: Deal = "round_robin"
    """round_robin, by_cost (costly tasks first, to the least busy rank), or one list of tasks per rank."""

    def __post_init__(self) -> None:
        check_fields(self)

    def order(self, samples: SampleAttributes, seed: int, rank: int, ranks: int) -> Order:
        """Return the order in which `rank` takes its samples."""
        return SampleOrder(samples.count, seed)

    def assign_tasks(self, costs: Mapping[str, int], ranks: int) -> Owners:
        """Return the ranks that train each task of `costs`, which maps a task to its work per sample."""
        if self.tasks == "replicate":
            return {task: tuple(range(ranks)) for task in costs}
        return partitioned(self.deal, costs, ranks)

    def problems(self, run: RunFacts) -> list[Problem]:
        """Return the reasons why the ranks cannot share these samples and tasks; none before the data are known."""
        if run.samples is None or run.world_size is None:
            return []
        found = [*self._sample_problems(run.samples, run.world_size, run.seed, run.epochs)]
        if self.tasks == "partition":
            found += partition_problems(self.deal, run.subtasks, run.world_size)
        return found

    def _sample_problems(self, samples: SampleAttributes, ranks: int, seed: int, epochs: int) -> Iterator[Problem]:
        yield from ()


@dataclass(kw_only=True)
class Shards(Slicing, ABC):
    """One shard per rank: every sample belongs to one rank, for the whole run or for one epoch."""

    drawn: Literal["once", "every_epoch"] = "once"
    """once: a rank keeps its shard. every_epoch: shards are drawn anew."""

    def order(self, samples: SampleAttributes, seed: int, rank: int, ranks: int) -> Order:
        """Return the order in which `rank` goes round its shard."""
        shards = partial(self.shards, samples, ranks, seed)
        redrawn = self.drawn == "every_epoch"
        return ShardOrder(shards, samples.count, seed, rank=rank, ranks=ranks, redrawn=redrawn)

    def shards(self, samples: SampleAttributes, ranks: int, seed: int, epoch: int) -> list[Tensor]:
        """Return the indices of each rank's samples in an epoch, int64, ascending.

        The result is the same on every rank, device and machine. Raises ValueError, which begins with the key at fault,
        for samples that cannot be shared so.
        """
        drawn = 0 if self.drawn == "once" else epoch
        generator = torch.Generator().manual_seed(mixed_seed(seed, drawn, "shards"))
        shards = [shard.sort().values for shard in self.cut(samples, ranks, generator)]
        if empty := [str(rank) for rank, shard in enumerate(shards) if not len(shard)]:
            raise ValueError(self.empty_shards(empty, ranks))
        return shards

    @abstractmethod
    def cut(self, samples: SampleAttributes, ranks: int, generator: torch.Generator) -> list[Tensor]:
        """Return a partition of the indices 0 to count - 1, one part per rank."""

    def empty_shards(self, empty: list[str], ranks: int) -> str:
        """Return the error for ranks `empty`, which got no sample."""
        which = f"ranks {', '.join(empty)} of {ranks}"
        return f"name: found {type(self).__name__}, which leaves {which} without samples; use fewer ranks"

    def _sample_problems(self, samples: SampleAttributes, ranks: int, seed: int, epochs: int) -> Iterator[Problem]:
        """Yield a problem for the first epoch that leaves a rank without samples, among the first `CHECKED_EPOCHS`."""
        if ranks > samples.count:
            return  # refused elsewhere; no slicing would help
        for epoch in range(min(epochs, CHECKED_EPOCHS) if self.drawn == "every_epoch" else 1):
            try:
                self.shards(samples, ranks, seed, epoch)
            except ValueError as error:
                key, _, text = str(error).partition(": ")
                yield Problem(f"slicing.{key}", text)
                return


def assign_keys(keys: Tensor, ranks: int, generator: torch.Generator) -> list[Tensor]:
    """Return one part per rank, such that all samples with the same key [samples] go to the same rank.

    Keys come in a random order, each to the rank with the fewest samples so far. So sizes differ by at most the samples
    of the commonest key, and no rank stays empty where there are at least as many keys as ranks.
    """
    present, counts = keys.unique(return_counts=True)
    owner = torch.zeros(int(keys.max()) + 1, dtype=torch.int64)
    load = [0] * ranks
    for index in torch.randperm(len(present), generator=generator).tolist():
        rank = load.index(min(load))
        load[rank] += int(counts[index])
        owner[present[index]] = rank
    owners = owner[keys]
    return [(owners == rank).nonzero().flatten() for rank in range(ranks)]
