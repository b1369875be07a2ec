"""A resume of a mode is bitwise: at every step of a period, twice in a row, on each rank."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from loops import Loop, alone, norm_net, sgd
from mode_cases import ALL, MODES, PAIRS, saved
from pieces import REDUCERS
from rank_pool import RankPool
from run_states import same

from ddp_agent.distributed.topology import Topology
from ddp_agent.sync import (
    DiLoCo,
    Gossip,
    Hierarchical,
    LocalSGD,
    StreamingDiLoCo,
)


def begun(make: Any, reducer: str, ranks_per_node: int | None = None) -> Loop:
    topology = Topology.create(ranks_per_node)
    return Loop(make(), reducer=REDUCERS[reducer](), optimizer=sgd(momentum=0.9), model=norm_net, topology=topology)


def resumed(make: Any, reducer: str, state: dict[str, Any], step: int, ranks_per_node: int | None = None) -> Loop:
    loop = begun(make, reducer, ranks_per_node)
    loop.run(2)  # DDP settles its order of summation in the first passes: the trainer rehearses as well
    state = copy.deepcopy(state)
    loop.flat.restore(state["weights"])
    loop.optimizer.load_state_dict(state["optimizer"])
    loop.sync.load_state_dict(state["sync"])
    loop.reducer.load_state_dict(state["reducer"])
    loop.step = step
    return loop


def resume_everywhere(mode: str, reducer: str) -> list[int]:
    return resume_everywhere_with(ALL[mode], reducer)


def resume_everywhere_with(make: Any, reducer: str, ranks_per_node: int | None = None) -> list[int]:
    """The steps at which a resume did not go on as a run that was never stopped.

    Each resumed run takes one step and is saved, and the next one begins there: what a resume loses is missing from
    then on, through two periods, so that it shows when it is next needed. States are compared whole, bit for bit.
    """
    whole = begun(make, reducer, ranks_per_node)
    states = [saved(whole.run(1)) for _ in range(9)]
    wrong = []
    now = states[0]
    for step in range(1, 9):
        once = resumed(make, reducer, now, step, ranks_per_node).run(1)
        now = saved(once)
        if not same(now, states[step]):
            wrong.append(step)
    ended, final = (loop.flush().flat.snapshot() for loop in (once, whole))
    return wrong if all(map(torch.equal, ended, final)) else [*wrong, 9]


@PAIRS
@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_resume_is_bitwise_at_every_step(mode: str, reducer: str, size: int, request: pytest.FixtureRequest) -> None:
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    assert pool.run(resume_everywhere, mode, reducer) == [[]] * size


# What a period of 4 on one node does not meet: nodes, peers that take turns, more steps under way, other policies.
OTHER: dict[str, tuple[Any, str]] = {
    "nodes, gradients": (partial(Hierarchical, node_period=1, global_period=3), "dense"),
    "nodes, parameters": (partial(Hierarchical, node_period=2, global_period=5), "dense"),
    "exponential": (partial(Gossip, graph="exponential", period=1), "dense"),
    "two steps to arrive": (partial(StreamingDiLoCo, period=6, fragments=2, delay=2, alpha=0.5), "int8"),
    "average": (partial(LocalSGD, period=3, optimizer_state="average", buffers="rank0"), "dense"),
    "reset": (partial(DiLoCo, period=3, optimizer_state="reset", buffers="local"), "topk"),
}


def resume_other(name: str) -> list[int]:
    make, reducer = OTHER[name]
    return resume_everywhere_with(make, reducer, 2)


@pytest.mark.parametrize("name", OTHER)
def test_resume_is_bitwise_on_nodes_among_peers_and_with_every_policy(ranks4: RankPool, name: str) -> None:
    assert ranks4.run(resume_other, name) == [[]] * 4


def resume_without(part: str) -> list[int]:
    """The same, but a part of the state is lost: the test above must be able to see that."""
    make = ALL["diloco"]
    whole = Loop(make(), optimizer=sgd(momentum=0.9), model=norm_net).run(6)
    state = saved(whole)
    final = whole.run(3).flush().weights
    if part == "sync":
        state["sync"] |= {key: torch.zeros_like(state["sync"][key]) for key in ("anchor", "momentum")}
    else:
        state["optimizer"]["state"] = {}
    return [0 if torch.equal(resumed(make, "dense", state, 6).run(3).flush().weights, final) else 6]


@pytest.mark.parametrize("part", ["sync", "optimizer"])
def test_control_a_lost_part_of_the_state_is_seen(ranks2: RankPool, part: str) -> None:
    assert ranks2.run(resume_without, part) == [[6], [6]]


@MODES
def test_a_saved_state_does_not_change_as_training_goes_on(mode: str) -> None:
    loop = Loop(ALL[mode](), topology=alone()).run(5)
    state = loop.sync.state_dict()
    before = copy.deepcopy(state)
    loop.run(5)
    assert same(state, before)


@MODES
def test_a_foreign_state_is_refused(mode: str) -> None:
    loop = Loop(ALL[mode](), topology=alone())
    with pytest.raises((ValueError, KeyError)):
        loop.sync.load_state_dict({"nonsense": torch.zeros(1)})
