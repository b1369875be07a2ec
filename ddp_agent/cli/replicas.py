"""Runs of one rank each that train together (`on_rank_loss=continue`): how many there are, and who may not be one."""

from collections.abc import Mapping
from typing import Any

from ddp_agent.distributed.torchrun_env import REPLICA, Place, Replica
from ddp_agent.errors import ConfigError


def world_size(cfg: Mapping[str, Any], place: Place | None) -> int | None:
    """Replicas of this run, None when it is an ordinary one. Raises ConfigError when it is neither."""
    replica, wanted = Replica.read(), cfg.get("on_rank_loss") == "continue"
    if not wanted:
        if replica:
            raise ConfigError(f"on_rank_loss: found 'stop' in a replica ({REPLICA[0]} is set), expected continue")
        return None
    if replica is None or place is None:
        raise ConfigError(
            "on_rank_loss: found 'continue', but torchrun ends all its ranks when one dies; start replicas with a "
            "torchrun each: launch/elastic.sh"
        )
    if place.world_size != 1:
        raise ConfigError(f"on_rank_loss: found 'continue' among {place.world_size} ranks of one torchrun, expected 1")
    return replica.count
