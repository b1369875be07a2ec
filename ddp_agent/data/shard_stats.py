"""What the shards of a run hold."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddp_agent.data.sample_order import Order, ShardOrder


@dataclass(frozen=True)
class Census:
    """Of the first epoch's shards, where they are drawn anew. `labels`: samples of each class, int64 [ranks, classes];
    None for data without classes."""

    sizes: list[int]
    labels: Tensor | None

    @classmethod
    def of(cls, order: Order) -> "Census | None":
        """None where all ranks share one stream."""
        if not isinstance(order, ShardOrder):
            return None
        shards, labels = order.shards(0), order.stock.labels
        if labels is None:
            return cls([len(shard) for shard in shards], None)
        classes = int(labels.max()) + 1
        counts = [labels[shard].bincount(minlength=classes) for shard in shards]
        return cls([len(shard) for shard in shards], torch.stack(counts))

    @property
    def divergences(self) -> list[float] | None:
        """Of each rank's classes from those of all samples: Jensen-Shannon, in bits, from 0 (alike) to 1 (disjoint)."""
        if self.labels is None:
            return None
        whole = _shares(self.labels.sum(0))
        return [jensen_shannon(_shares(row), whole) for row in self.labels]

    def summary(self) -> dict[str, Any]:
        return {
            "shard_sizes": self.sizes,
            "shard_labels": None if self.labels is None else self.labels.tolist(),
            "shard_divergences": self.divergences,
        }


def summary(census: Census | None) -> dict[str, Any]:
    """For `summary.json`: null where there are no shards."""
    return census.summary() if census else dict.fromkeys(("shard_sizes", "shard_labels", "shard_divergences"))


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """The mean of both distributions' relative entropies to their mean, in bits (Lin 1991)."""
    middle = (p + q) / 2
    return float((_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2)


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p / q).log2(), 0.0).sum()


def _shares(counts: Tensor) -> Tensor:
    return counts.double() / counts.sum()
