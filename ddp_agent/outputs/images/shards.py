"""Who has how much of which class."""

from collections.abc import Sequence

from torch import Tensor

from ddp_agent.data.shard_stats import ShardStats
from ddp_agent.outputs.images.canvas import table


def shards(stats: ShardStats, class_names: Sequence[str]) -> Tensor | None:
    """A row a rank, a column a class; None for data without classes."""
    if stats.label_counts is None or stats.divergences is None:
        return None
    shares = stats.label_counts / stats.label_counts.sum(1, keepdim=True)
    rows = [
        f"rank {rank}: {size:,} samples, divergence {divergence:.2f}"
        for rank, (size, divergence) in enumerate(zip(stats.sizes, stats.divergences, strict=True))
    ]
    return table("Classes of each rank's shard, in per cent of it", shares, rows, class_names)
