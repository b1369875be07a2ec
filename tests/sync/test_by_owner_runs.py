"""Parameters that only some ranks train: traffic, resume, measurements and refusals."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from heads import HEADS, PARTED, Heads, Owners, allowed, distance, plain
from loops import Loop, refusal, sgd
from mode_cases import ALL, TOLERANCE, TRAITS
from pieces import REDUCERS
from rank_pool import RankPool
from run_states import same
from runs import FEW
from test_mode_traffic import assert_stated, one_averaging

from ddp_agent.distributed.ledger import CommStats
from ddp_agent.distributed.topology import Topology
from ddp_agent.distributed.traffic import Collective
from ddp_agent.reducers import Dense, Reducer
from ddp_agent.sync import Gossip, LocalSGD, StreamingDiLoCo, SyncStrategy
from ddp_agent.sync.engine.by_owner import ByOwner
from ddp_agent.sync.engine.internals import internals
from ddp_agent.sync.engine.uneven_inputs import Weighted
from ddp_agent.training.ema import EMA

# Traffic.

TRUNK, HEAD = 5 * 4 + 4, 4 * 2 + 2 + 2 + 1


def traffic(mode: str, reducer: str) -> tuple[CommStats, list[Collective], int]:
    loop = Heads(ALL[mode](), model=plain, reducer=REDUCERS[reducer]()).run(10).flush()
    loop.sync.consensus_distance()
    with loop.sync.eval_weights():
        pass
    return loop.topology.world.stats, internals(loop.sync).traffic(10), loop.syncs


@pytest.mark.parametrize(
    ("mode", "reducer"),
    [(mode, reducer) for mode in ALL for reducer in ("dense", "bf16", "int8", "topk") if reducer in allowed(mode)],
)
def test_counted_bytes_are_what_the_mode_states_of_the_trunk_and_its_heads(
    ranks3: RankPool, mode: str, reducer: str
) -> None:
    for rank, (stats, stated, _) in enumerate(ranks3.run(traffic, mode, reducer)):
        assert_stated(stats, stated, rank)
        owners = {each.ranks for each in stated if each.group == "owners" and each.ranks > 1}
        assert owners == ({2} if rank in PARTED["a"] and TRAITS[mode].sends != "nothing" else set())


ROUNDS = {"local_sgd": 3, "diloco": 3, "streaming_diloco": 3, "gossip": 3, "hierarchical": 6, "allreduce": 10}


def expected_traffic(mode: str, reducer: str, rank: int) -> tuple[float, float]:
    """Of three averagings in ten steps: the trunk among three ranks, and the head that two of them have."""
    parts = [(TRUNK, 3), *([(HEAD, 2)] if rank in PARTED["a"] else [])]
    if mode == "gossip":  # to one neighbour or two
        sent = float(ROUNDS[mode] * sum(size * 8 * min(2, ranks - 1) for size, ranks in parts))
        return sent, sent
    cut = {TRUNK: [10, 14], HEAD: [8, 5]} if mode == "streaming_diloco" else {TRUNK: [TRUNK], HEAD: [HEAD]}
    each = [one_averaging(reducer, ranks, piece) for size, ranks in parts for piece in cut[size]]
    return ROUNDS[mode] * sum(payload for payload, _ in each), ROUNDS[mode] * sum(wire for _, wire in each)


@pytest.mark.parametrize(
    ("mode", "reducer"),
    [*((mode, "dense") for mode in ROUNDS), *(("diloco", name) for name in ("int8", "topk")), ("allreduce", "bf16")],
)
def test_counted_bytes_are_those_worked_out_by_hand(ranks3: RankPool, mode: str, reducer: str) -> None:
    for rank, (stats, _, syncs) in enumerate(ranks3.run(traffic, mode, reducer)):
        payload, wire = expected_traffic(mode, reducer, rank)
        assert stats.payload_bytes == payload
        assert stats.wire_bytes == pytest.approx(wire, abs=100)
        assert syncs == ROUNDS[mode] * (2 if mode == "streaming_diloco" else 1)


# Resume.


def saved(loop: Loop) -> dict[str, Any]:
    parts: dict[str, Any] = {"optimizer": loop.optimizer, "sync": loop.sync, "reducer": loop.reducer}
    state = {name: part.state_dict() for name, part in parts.items()}
    return copy.deepcopy(state | {"weights": loop.flat.snapshot(), "syncs": loop.syncs})


def resumed(make: Callable[[], Heads], state: dict[str, Any], step: int) -> Heads:
    loop = make().run(2)  # DDP settles its order of summation in the first passes
    state = copy.deepcopy(state)
    loop.flat.restore(state["weights"])
    internals(loop.sync).syncs = state["syncs"]
    for name in ("optimizer", "sync", "reducer"):
        getattr(loop, name).load_state_dict(state[name])
    loop.step = step
    return loop


def resume_everywhere(mode: str, reducers: list[str]) -> list[str]:
    """Each resumed run takes one step, and the next begins from what it saved."""
    wrong = []
    for reducer in reducers:

        def make(reducer: str = reducer) -> Heads:
            return Heads(ALL[mode](), reducer=REDUCERS[reducer](), optimizer=sgd(momentum=0.9))

        whole = make()
        states = [saved(whole.run(1)) for _ in range(9)]
        now = states[0]
        for step in range(1, 9):
            once = resumed(make, now, step).run(1)
            now = saved(once)
            if not same(now, states[step]):
                wrong.append(f"{reducer} at {step}")
        ended, final = (loop.flush().flat.snapshot() for loop in (once, whole))
        if not all(map(torch.equal, ended, final)):
            wrong.append(f"{reducer} at the end")
    return wrong


@pytest.mark.parametrize("mode", [pytest.param(m, marks=[] if m in FEW else pytest.mark.exhaustive) for m in ALL])
def test_resume_is_bitwise_at_every_step(ranks3: RankPool, mode: str) -> None:
    reducers = [reducer for reducer in ("dense", "int8", "powersgd") if reducer in allowed(mode)]
    assert ranks3.run(resume_everywhere, mode, reducers) == [[]] * 3


# What is measured, and what is made of the weights besides.


def measure_distance(mode: str) -> tuple[float, float]:
    loop = Heads(ALL[mode](), model=plain).run(3)
    state = loop.state(buffers=False)
    means = loop.over_owners(state)
    rank = loop.topology.world.rank
    mine = ["trunk", *(head for head, owners in PARTED.items() if rank in owners)]
    own = sum((state[part] - means[part]).square().sum() for part in mine)
    squares = torch.cat(loop.topology.world.all_gather(torch.as_tensor(own).reshape(1)))
    return loop.sync.consensus_distance(), math.sqrt(squares.mean().item())


@pytest.mark.parametrize("mode", ["independent", "local_sgd", "easgd", "allreduce"])
def test_the_distance_is_over_what_each_rank_trains(ranks3: RankPool, mode: str) -> None:
    for measured, by_definition in ranks3.run(measure_distance, mode):
        assert measured == pytest.approx(by_definition, rel=1e-9, abs=1e-14)
        assert (measured < 1e-14) == (mode == "allreduce")


def averaged_copies() -> float:
    """A moving average beside the weights: ranks keep one of heads that they do not train, too."""
    loop = Heads(LocalSGD(period=4))
    ema = EMA(loop.module, 0.0)  # the weights themselves
    loop.run(3)
    ema.update(loop.module)
    expected = loop.over_owners(loop.state())
    with ema.eval_weights(internals(loop.sync).mean_) as model:
        loop.module = model
        found = loop.state()
    return distance(*({part: state[part][:5] for part in state} for state in (expected, found)))


def test_a_moving_average_is_averaged_over_owners(ranks3: RankPool) -> None:
    assert max(ranks3.run(averaged_copies)) < TOLERANCE


def interrupted() -> bool:
    loop = Heads(LocalSGD(period=4)).run(3)
    before = loop.flat.snapshot()
    with pytest.raises(RuntimeError), loop.sync.eval_weights():
        raise RuntimeError
    return all(map(torch.equal, before, loop.flat.snapshot()))


def test_own_weights_are_back_after_an_exception(ranks3: RankPool) -> None:
    assert ranks3.run(interrupted) == [True] * 3


def nodes() -> list[int]:
    """The ranks of each owner's part of its node: of nodes {0, 1}, {2, 3} and owners 0, 2, 3."""
    topology = Topology.create(ranks_per_node=2)
    some = topology.among((0, 2, 3))
    if topology.among((0, 2, 3)) is not some or topology.among(range(4)) is not topology:
        return [-1]
    if some is None:
        return []
    return [some.world.size, some.node.size, some.across.size, len(topology.comms)]


def test_owners_know_their_nodes(ranks4: RankPool) -> None:
    assert ranks4.run(nodes) == [[3, 1, 2, 4], [], [3, 2, 2, 4], [3, 2, 1, 4]]


# What cannot be.


def misfit(owners: Owners, mode: SyncStrategy | None = None, ranks: int = 3) -> str | None:
    named = {f"heads.{head}": own for head, own in owners.items()}
    return refusal(ByOwner(mode=mode or LocalSGD(period=4), owners=named), None, ranks, ranks_per_node=ranks)


def test_owners_that_cannot_be() -> None:
    assert misfit(PARTED) is None
    assert "heads.b: found no rank that trains it" in str(misfit({"a": (0,), "b": ()}))
    assert "found [0, 3], expected one or more of the 3 ranks" in str(misfit({"a": (0, 3)}))
    assert "found [1, 1], expected" in str(misfit({"a": (1, 1)}))
    found = str(misfit({"a": (0, 1, 2), "b": (3,)}, Gossip(period=1, graph="exponential"), ranks=4))
    assert found.startswith("sync.graph: found exponential among 3 ranks") and "the ranks that train heads.a" in found


def refused(owners: dict[str, tuple[int, ...]], mode: SyncStrategy, reducer: Reducer) -> str:
    module = plain()
    sync = ByOwner(mode=mode, owners=owners)
    with pytest.raises(ValueError, match=r".") as error:
        sync.setup(module, torch.optim.SGD(module.parameters(), lr=0.1), Topology.create(), reducer)
    return str(error.value)


def test_what_is_no_head_is_refused(ranks1: RankPool) -> None:
    def said(owners: dict[str, tuple[int, ...]], mode: SyncStrategy, reducer: Reducer | None = None) -> str:
        found: str = ranks1.run(refused, owners, mode, reducer or Dense())[0]
        return found

    local = LocalSGD(period=2)
    assert said({"heads.x": (0,)}, local) == "heads.x: it has no parameters"
    assert "do not lie side by side" in said({"heads.a": (0,), "heads.c": (0,)}, local)
    assert "cannot tell apart" in said({"heads.a": (0,)}, local, Weighted(Dense()))
    streaming = StreamingDiLoCo(period=8, fragments=8, delay=0)
    assert said({f"heads.{head}": (0,) for head in HEADS}, streaming).startswith(
        "what every rank trains: fragments: found 8"
    )
