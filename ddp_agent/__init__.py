"""Train a PyTorch model on many ranks, with a choice of how the ranks synchronise.

The package exports every sync mode, reducer and cadence, and the parts that a training loop of one's own needs. An
export is imported when it is first asked for, so that `import ddp_agent` alone imports no torch.

Examples:
    >>> from ddp_agent import Dense, DiLoCo, Int8
    >>> DiLoCo(period=100, outer_lr=0.7).traits.sends
    'changes'
    >>> Dense().traits.exact, Int8(block=256).traits.exact
    (True, False)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a new choice works without a line here, but type checkers see it as Any
    from ddp_agent.checkpoint.export import load as load
    from ddp_agent.distributed.comm import Comm as Comm
    from ddp_agent.distributed.ledger import CommStats as CommStats
    from ddp_agent.distributed.topology import Topology as Topology
    from ddp_agent.reducers.base import Reducer as Reducer
    from ddp_agent.reducers.cast import Cast as Cast
    from ddp_agent.reducers.dense import Dense as Dense
    from ddp_agent.reducers.int8 import Int8 as Int8
    from ddp_agent.reducers.powersgd import PowerSGD as PowerSGD
    from ddp_agent.reducers.sign import Sign as Sign
    from ddp_agent.reducers.sparse import Sparse as Sparse
    from ddp_agent.reducers.topk import TopK as TopK
    from ddp_agent.sync.allreduce import AllReduce as AllReduce
    from ddp_agent.sync.base import SyncStrategy as SyncStrategy
    from ddp_agent.sync.cadences.base import Cadence as Cadence
    from ddp_agent.sync.cadences.drift import Drift as Drift
    from ddp_agent.sync.cadences.fixed import Fixed as Fixed
    from ddp_agent.sync.cadences.linear import Linear as Linear
    from ddp_agent.sync.cadences.qsr import QSR as QSR
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

__version__ = "0.2.0"

_CHOICES = ("sync", "reducer", "cadence")  # config groups: each of their classes is exported, a new one without a line
_OTHERS = {
    "Cadence": "ddp_agent.sync.cadences.base",
    "Comm": "ddp_agent.distributed.comm",
    "CommStats": "ddp_agent.distributed.ledger",
    "Reducer": "ddp_agent.reducers.base",
    "SyncStrategy": "ddp_agent.sync.base",
    "Topology": "ddp_agent.distributed.topology",
    "load": "ddp_agent.checkpoint.export",
}


def _exports() -> dict[str, str]:
    """Return the module that defines each exported name. Imports none of these modules."""
    from ddp_agent.config.registry import classes

    return _OTHERS | {name: module for group in _CHOICES for name, module in classes(group).items()}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_exports())
    module = None if name.startswith("_") else _exports().get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_exports()})
