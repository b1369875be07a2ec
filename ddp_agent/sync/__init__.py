"""Sync modes: when ranks synchronise, and what travels."""

from typing import TYPE_CHECKING

from ddp_agent.config.registry import lazy_exports

if TYPE_CHECKING:  # a new class is exported without a line here, but type checkers see it as Any
    from ddp_agent.sync.allreduce import AllReduce as AllReduce
    from ddp_agent.sync.base import SyncStrategy as SyncStrategy
    from ddp_agent.sync.compressed import Compressed as Compressed
    from ddp_agent.sync.diloco import DiLoCo as DiLoCo
    from ddp_agent.sync.easgd import EASGD as EASGD
    from ddp_agent.sync.gossip import Gossip as Gossip
    from ddp_agent.sync.hierarchical import Hierarchical as Hierarchical
    from ddp_agent.sync.independent import Independent as Independent
    from ddp_agent.sync.local_sgd import LocalSGD as LocalSGD
    from ddp_agent.sync.parameter_update import ParameterUpdate as ParameterUpdate
    from ddp_agent.sync.post_local_sgd import PostLocalSGD as PostLocalSGD
    from ddp_agent.sync.slowmo import SlowMo as SlowMo
    from ddp_agent.sync.streaming_diloco import StreamingDiLoCo as StreamingDiLoCo

__getattr__ = lazy_exports("sync", {"SyncStrategy": "ddp_agent.sync.base"})
