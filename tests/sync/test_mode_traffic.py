"""Counted traffic equals what the pieces state, and for some a formula that knows nothing of the code."""

import math
from functools import partial
from typing import Any

import pytest
from loops import Loop, norm_net, sgd
from mode_cases import NORM_FLOATS, NORM_INTEGERS, NORM_PARAMETERS, PAIRS, STEPS, TRAITS, count
from pieces import REDUCERS
from rank_pool import RankPool
from wire_totals import total_wire_bytes

from ddp_agent.distributed.ledger import CommStats
from ddp_agent.distributed.topology import Topology
from ddp_agent.distributed.traffic import Collective, from_plain, to_plain, total_bytes
from ddp_agent.sync import (
    DiLoCo,
    Gossip,
    Hierarchical,
    LocalSGD,
    PostLocalSGD,
    StreamingDiLoCo,
)
from ddp_agent.sync.cadences import Drift
from ddp_agent.sync.engine.internals import internals


def assert_stated(stats: CommStats, stated: list[Collective], rank: int = 0) -> None:
    """A broadcast is sent by rank 0 alone."""
    sent = [each for each in stated if rank == 0 or each.kind != "broadcast"]
    assert stats.payload_bytes == total_bytes(stated)
    assert stats.calls == sum(each.calls for each in stated)
    assert stats.wire_bytes == pytest.approx(total_wire_bytes(sent), abs=stats.calls)


@PAIRS
@pytest.mark.parametrize("size", [2, 3])
def test_counted_bytes_are_what_the_mode_states(
    mode: str, reducer: str, size: int, request: pytest.FixtureRequest
) -> None:
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    traits = TRAITS[mode]
    for stats, stated, _ in pool.run(count, mode, reducer):
        assert_stated(stats, stated)
        assert bool(stated) == (traits.sends != "nothing")
        assert from_plain(to_plain(stated)) == stated
        assert any(each.period for each in stated) == traits.has_period
        assert any(each.group == "node" for each in stated) == traits.uses_nodes


# Other values than those of `pieces`: policies, cadences, graphs, and steps that end in the middle of something.
ODD: dict[str, tuple[Any, str, int]] = {
    "rank 0's buffers": (partial(LocalSGD, period=3, buffers="rank0", optimizer_state="average"), "dense", 7),
    "no buffers": (partial(DiLoCo, period=4, buffers="local"), "int8", 8),
    "drift": (partial(LocalSGD, period=1, cadence=Drift(target=1e9, max_period=1)), "dense", 5),
    "before the switch": (partial(PostLocalSGD, switch_step=20, period=4), "dense", 9),
    "two nodes, gradients": (partial(Hierarchical, node_period=1, global_period=3), "dense", 8),
    "two nodes, parameters": (partial(Hierarchical, node_period=2, global_period=5), "dense", 13),
    "one peer": (partial(Gossip, graph="exponential", period=2), "dense", 7),
    "complete": (partial(Gossip, graph="complete", period=2), "dense", 7),
    "empty": (partial(Gossip, graph="empty", period=2), "dense", 7),
    **{
        f"fragments, {steps} steps": (partial(StreamingDiLoCo, period=6, fragments=3, delay=1), "topk", steps)
        for steps in (1, 2, 5, 6, 7, 9, 12)
    },
    "fragments by modules": (partial(StreamingDiLoCo, period=4, fragments=(("1",), ("0", "3")), delay=0), "sign", 6),
}


def count_odd(name: str) -> tuple[CommStats, list[Collective]]:
    make, reducer, steps = ODD[name]
    loop = Loop(make(), reducer=REDUCERS[reducer](), model=norm_net, optimizer=sgd(momentum=0.9),
                topology=Topology.create(ranks_per_node=2))  # fmt: skip
    loop.run(steps).flush()
    return loop.topology.world.stats, internals(loop.sync).traffic(steps)


@pytest.mark.parametrize("name", ODD)
def test_counted_bytes_are_stated_for_every_policy_and_number_of_steps(ranks4: RankPool, name: str) -> None:
    for rank, (stats, stated) in enumerate(ranks4.run(count_odd, name)):
        assert_stated(stats, stated, rank)


def ring(payload: float, ranks: int) -> tuple[float, float]:
    """Payload and wire bytes of all-reduces."""
    return payload, payload * 2 * (ranks - 1) / ranks


def one_averaging(reducer: str, ranks: int, size: int) -> tuple[float, float]:
    """Payload and wire bytes of averaging `size` parameters in fp64; all: 4 x 5, 4, norm 4 + 4, 3 x 4, 3."""
    if reducer in ("int8", "sign"):  # a packet to each rank, and a packet to all: codes and fp32 scales
        block, packed = {"int8": (8, 8 + 4), "sign": (1024, 128 + 4)}[reducer]
        packet = -(-size // (block * ranks)) * packed
        return (ranks + 1) * packet, 2 * (ranks - 1) * packet
    if reducer == "topk":  # values and int32 indices
        packet = math.ceil(0.3 * size) * (8 + 4)
        return packet, (ranks - 1) * packet
    if reducer == "sparse":  # of which nothing is zero here: a byte a block beside all numbers
        return ring(size * 8 + size // 8, ranks)
    if reducer == "powersgd":  # vectors, and two factors of one column for each matrix
        saved = {NORM_PARAMETERS: 4 * 5 - (4 + 5) + 3 * 4 - (3 + 4), 24: 4 * 5 - (4 + 5), 23: 3 * 4 - (3 + 4)}[size]
        return ring((size - saved) * 8, ranks)
    return ring(size * {"dense": 8, "bf16": 2, "fp16": 2}[reducer], ranks)


def expected(mode: str, reducer: str, ranks: int) -> tuple[float, float, int]:
    """Payload bytes, wire bytes, syncs."""
    parameters, buffers = one_averaging(reducer, ranks, NORM_PARAMETERS), ring((NORM_FLOATS + NORM_INTEGERS) * 8, ranks)
    averagings = merges = syncs = -(-STEPS // 4)
    extra = (0.0, 0.0)
    if mode == "allreduce" and reducer == "powersgd":  # exact until DDP has regrouped its buckets
        averagings, merges, syncs, extra = STEPS - 1, 1, STEPS, one_averaging("dense", ranks, NORM_PARAMETERS)
    elif mode in ("allreduce", "compressed"):
        averagings, merges, syncs = STEPS, 1, STEPS
    elif mode == "post_local_sgd":
        merges = (STEPS - 2) // 4
        averagings = syncs = 2 + merges
    elif mode == "hierarchical":  # every second step and the flush: all ranks are one node
        averagings = merges = syncs = STEPS // 2 + 1
    elif mode == "streaming_diloco":  # two fragments a period, cut behind the first layer
        halves = [one_averaging(reducer, ranks, size) for size in (24, 23)]
        parameters, syncs = (sum(p for p, _ in halves), sum(w for _, w in halves)), 2 * averagings
    elif mode == "gossip":  # to one neighbour or two; integers stay at home
        sent = averagings * (NORM_PARAMETERS + NORM_FLOATS) * 8 * min(2, ranks - 1)
        return sent, sent, syncs
    payload, wire = (averagings * p + merges * b + x for p, b, x in zip(parameters, buffers, extra, strict=True))
    return payload, wire, syncs


BY_HAND = [
    *[("allreduce", "dense"), ("allreduce", "powersgd"), ("compressed", "int8"), ("local_sgd", "dense")],
    *[("post_local_sgd", "dense"), ("hierarchical", "dense"), ("gossip", "dense"), ("easgd", "fp16")],
    *[("streaming_diloco", "powersgd"), ("streaming_diloco", "int8")],
    *[("diloco", reducer) for reducer in ("bf16", "sign", "topk", "sparse")],
]


@pytest.mark.parametrize(("mode", "reducer"), BY_HAND)
@pytest.mark.parametrize("size", [2, 3])
def test_counted_bytes_are_those_worked_out_by_hand(
    mode: str, reducer: str, size: int, request: pytest.FixtureRequest
) -> None:
    """A formula of a piece that is wrong as its code is wrong would be seen here."""
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    payload, wire, syncs = expected(mode, reducer, size)
    for stats, _, counted_syncs in pool.run(count, mode, reducer):
        assert counted_syncs == syncs
        assert stats.payload_bytes == payload
        assert stats.wire_bytes == pytest.approx(wire, abs=stats.calls)


def count_calls() -> int:
    loop = Loop(LocalSGD(period=1))
    loop.run(1)
    return loop.topology.world.stats.calls


def test_a_sync_of_a_model_without_buffers_is_one_collective(ranks2: RankPool) -> None:
    """A collective per tensor, as accelerate's LocalSGD does, costs twice as much."""
    assert ranks2.run(count_calls) == [1, 1]
