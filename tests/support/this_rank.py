"""The runtime of a rank whose process group is there already."""

import torch
import torch.distributed as dist

from ddp_agent.distributed.process_group import Runtime


def this_rank(attempt: int = 0) -> Runtime:
    """All ranks are on one node, on CPU."""
    rank, size = dist.get_rank(), dist.get_world_size()
    return Runtime(
        rank=rank,
        world_size=size,
        local_world_size=size,
        attempt=attempt,
        device=torch.device("cpu"),
        backend="gloo",
    )
