"""Checks of a run that is a replica: one rank that trains together with other runs (`on_rank_loss=continue`)."""

from collections.abc import Mapping
from typing import Any

from ddp_agent.distributed.process import REPLICA, Replica, TorchrunEnvironment
from ddp_agent.errors import ConfigError


def world_size(cfg: Mapping[str, Any], environment: TorchrunEnvironment | None) -> int | None:
    """Return the number of replicas, or None for an ordinary run. Raise ConfigError for a mixture of the two."""
    replica, wanted = Replica.read(), cfg.get("on_rank_loss") == "continue"
    if not wanted:
        if replica:
            raise ConfigError(f"on_rank_loss: found 'stop' in a replica ({REPLICA[0]} is set), expected continue")
        return None
    if replica is None or environment is None:
        raise ConfigError(
            "on_rank_loss: found 'continue', but torchrun ends all its ranks when one dies; start replicas with a "
            "torchrun each: launch/elastic.sh"
        )
    if environment.world_size != 1:
        raise ConfigError(
            f"on_rank_loss: found 'continue' among {environment.world_size} ranks of one torchrun, expected 1"
        )
    return replica.count
