"""Pictures of a confusion table and of the classes in each rank's shard."""

from collections.abc import Sequence

from torch import Tensor

from ddp_agent.data.shard_stats import ShardStats
from ddp_agent.outputs.confusion import Confusion
from ddp_agent.outputs.images.drawing import table

MAX_CLASSES = 200  # that a confusion table has room for


def confusion_table(confusion: Confusion) -> Tensor | None:
    """Draw a row per class and a column per guess; None for more classes than can be told apart."""
    if len(confusion.counts) > MAX_CLASSES:
        return None
    shares = confusion.counts / confusion.counts.sum(1, keepdim=True).clamp(min=1)
    title = "Guesses (columns) for the test samples of each class (rows), in per cent"
    return table(title, shares, confusion.names, confusion.names, shades=shares.sqrt())  # else 2 % would look like 0


def shard_table(stats: ShardStats, class_names: Sequence[str]) -> Tensor | None:
    """Draw a row per rank and a column per class; None for data without classes."""
    if stats.label_counts is None or stats.divergences is None:
        return None
    shares = stats.label_counts / stats.label_counts.sum(1, keepdim=True)
    rows = [
        f"rank {rank}: {size:,} samples, divergence {divergence:.2f}"
        for rank, (size, divergence) in enumerate(zip(stats.sizes, stats.divergences, strict=True))
    ]
    return table("Classes of each rank's shard, in per cent", shares, rows, class_names)
