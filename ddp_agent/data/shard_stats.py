"""Statistics of a run's shards: sizes, classes, and how unlike they are."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ddp_agent.data.sample_order import Order


@dataclass(frozen=True)
class ShardStats:
    """Sizes and classes of the shards; of the first epoch, where shards are drawn anew."""

    sizes: list[int]
    label_counts: Tensor | None
    """Samples of each class, int64 [ranks, classes]; None for data without classes."""

    @classmethod
    def of(cls, order: Order, labels: Tensor | None) -> Self | None:
        """Return the statistics, given the class of each training sample; None where all ranks share one stream."""
        shards = order.shards(0)
        if shards is None:
            return None
        sizes = [len(shard) for shard in shards]
        if labels is None:
            return cls(sizes, None)
        classes = int(labels.max()) + 1
        return cls(sizes, torch.stack([labels[shard].bincount(minlength=classes) for shard in shards]))

    @property
    def divergences(self) -> list[float] | None:
        """The Jensen-Shannon divergence of each rank's classes from those of all samples.

        It is in bits, from 0 (the same distribution) to 1 (disjoint). None for data without classes.
        """
        if self.label_counts is None:
            return None
        whole = _shares(self.label_counts.sum(0))
        return [jensen_shannon(_shares(row), whole) for row in self.label_counts]

    def summary(self) -> dict[str, Any]:
        """Return the keys for `summary.json`."""
        return {
            "shard_sizes": self.sizes,
            "shard_labels": None if self.label_counts is None else self.label_counts.tolist(),
            "shard_divergences": self.divergences,
        }


def summary(stats: ShardStats | None) -> dict[str, Any]:
    """Return the keys for `summary.json`, with null values where there are no shards."""
    return stats.summary() if stats else dict.fromkeys(("shard_sizes", "shard_labels", "shard_divergences"))


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Return the mean of both distributions' relative entropies to their mean, in bits (Lin 1991)."""
    middle = (p + q) / 2
    return float((_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2)


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p / q).log2(), 0.0).sum()


def _shares(counts: Tensor) -> Tensor:
    return counts.double() / counts.sum()
