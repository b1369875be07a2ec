"""Every mode, with what it promises; its pairs with reducers; and the sizes of the models that they train."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pieces
import pytest
from loops import InBuckets, Loop, norm_net, refusal
from pieces import REDUCERS

from ddp_agent.distributed.ledger import CommStats
from ddp_agent.distributed.traffic import Collective
from ddp_agent.sync import SyncStrategy
from ddp_agent.sync.base import SyncTraits
from ddp_agent.sync.engine.internals import internals

Make = Callable[..., SyncStrategy]

TOLERANCE = 1e-12
STEPS = 10
PARAMETERS = 5 * 4 + 4 + 4 * 3 + 3
NORM_PARAMETERS = PARAMETERS + 2 * 4
NORM_FLOATS, NORM_INTEGERS = 2 * 4, 1

ALL: dict[str, Make] = {**pieces.MODES, "allreduce in buckets": InBuckets}
TRAITS = {mode: make().traits for mode, make in ALL.items()}
MODES = pytest.mark.parametrize("mode", ALL)

ALLOWED = [
    (mode, reducer)
    for mode, make in ALL.items()
    for reducer, reduce in REDUCERS.items()
    # allreduce itself leaves those that remember to DDP's buckets.
    if refusal(make(), reduce()) is None and not (mode == "allreduce in buckets" and reduce().traits.remembers)
]
PAIRS = pytest.mark.parametrize(("mode", "reducer"), ALLOWED)


def has_replicas(traits: SyncTraits) -> bool:
    """Return whether all ranks hold something equal, bit for bit, at least right after a synchronisation."""
    return traits.has_anchor or traits.identical in ("always", "after_sync")


def largest(distances: list[float]) -> float:
    """Return the largest of distances, which must be finite."""
    assert all(math.isfinite(distance) for distance in distances)
    return max(distances)


def saved(loop: Loop) -> dict[str, Any]:
    state = {
        "weights": loop.flat.snapshot(),
        "optimizer": loop.optimizer.state_dict(),
        "sync": loop.sync.state_dict(),
        "reducer": loop.reducer.state_dict(),
    }
    return copy.deepcopy(state)


def count(mode: str, reducer: str) -> tuple[CommStats, list[Collective], int]:
    loop = Loop(ALL[mode](), reducer=REDUCERS[reducer](), model=norm_net).run(STEPS)
    loop.sync.consensus_distance()
    with loop.sync.eval_weights():
        pass
    loop.flush()
    return loop.topology.world.stats, internals(loop.sync).traffic(STEPS), loop.syncs
