"""No shards."""

from dataclasses import dataclass

from ddp_agent.data.slicing.base import Slicing


@dataclass(kw_only=True)
class Shared(Slicing):
    """No shards: one stream for all ranks, shuffled anew every epoch. It does not depend on the number of ranks."""
