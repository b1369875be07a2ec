"""Sync modes: when ranks synchronise, and what travels."""

from ddp_agent.sync.allreduce import AllReduce
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.compressed import Compressed
from ddp_agent.sync.diloco import DiLoCo
from ddp_agent.sync.easgd import EASGD
from ddp_agent.sync.gossip import Gossip
from ddp_agent.sync.hierarchical import Hierarchical
from ddp_agent.sync.independent import Independent
from ddp_agent.sync.local_sgd import LocalSGD
from ddp_agent.sync.parameter_update import ParameterUpdate
from ddp_agent.sync.post_local_sgd import PostLocalSGD
from ddp_agent.sync.slowmo import SlowMo
from ddp_agent.sync.streaming_diloco import StreamingDiLoCo

__all__ = [
    "EASGD",
    "AllReduce",
    "Compressed",
    "DiLoCo",
    "Gossip",
    "Hierarchical",
    "Independent",
    "LocalSGD",
    "ParameterUpdate",
    "PostLocalSGD",
    "SlowMo",
    "StreamingDiLoCo",
    "SyncStrategy",
]
