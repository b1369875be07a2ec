"""Who has how much of which class."""

from collections.abc import Sequence

from torch import Tensor

from ddp_agent.data.shard_stats import Census
from ddp_agent.outputs.images.canvas import table


def shards(census: Census, class_names: Sequence[str]) -> Tensor | None:
    """A row a rank, a column a class; None for data without classes."""
    if census.labels is None or census.divergences is None:
        return None
    shares = census.labels / census.labels.sum(1, keepdim=True)
    rows = [
        f"rank {rank}: {size:,} samples, divergence {divergence:.2f}"
        for rank, (size, divergence) in enumerate(zip(census.sizes, census.divergences, strict=True))
    ]
    return table("Classes of each rank's shard, in per cent of it", shares, rows, class_names)
