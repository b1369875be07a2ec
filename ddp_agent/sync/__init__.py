"""When ranks synchronise, and what travels."""

from ddp_agent.sync.allreduce import AllReduce
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.diloco import DiLoCo
from ddp_agent.sync.independent import Independent
from ddp_agent.sync.local_sgd import LocalSGD
from ddp_agent.sync.parameter_update import ParameterUpdate
from ddp_agent.sync.post_local_sgd import PostLocalSGD

__all__ = [
    "AllReduce",
    "DiLoCo",
    "Independent",
    "LocalSGD",
    "ParameterUpdate",
    "PostLocalSGD",
    "SyncStrategy",
]
