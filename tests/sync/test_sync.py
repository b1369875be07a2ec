"""Buffers, optimizer state, traffic, saved state and refusals of the modes."""

import copy
import math
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from loops import DTYPE, InBuckets, Loop, alone, apart, mlp, norm_net, random_batch, refusal, sgd, train
from pieces import REDUCERS, choices
from rank_pool import RankPool
from run_states import same
from test_laws import ALL, MODES, TRAITS
from torch import Tensor, nn
from torch.optim import AdamW

from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.distributed.comm import CommStats, LocalComm
from ddp_agent.distributed.topology import Topology
from ddp_agent.distributed.traffic import Collective, from_plain, to_plain
from ddp_agent.reducers import Cast, Dense, Int8, PowerSGD, Reducer, TopK
from ddp_agent.sync import (
    AllReduce,
    Compressed,
    DiLoCo,
    Gossip,
    Hierarchical,
    Independent,
    LocalSGD,
    ParameterUpdate,
    PostLocalSGD,
    StreamingDiLoCo,
)
from ddp_agent.sync.cadences import Drift
from ddp_agent.sync.engine.internals import internals
from ddp_agent.sync.engine.state_policies import OptimizerPolicy

STEPS = 10
PARAMETERS = 5 * 4 + 4 + 4 * 3 + 3
NORM_PARAMETERS = PARAMETERS + 2 * 4
NORM_FLOATS, NORM_INTEGERS = 2 * 4, 1

ALLOWED = [
    (mode, reducer)
    for mode, make in ALL.items()
    for reducer, reduce in REDUCERS.items()
    # allreduce itself leaves those that remember to DDP's buckets.
    if refusal(make(), reduce()) is None and not (mode == "allreduce in buckets" and reduce().traits.remembers)
]
PAIRS = pytest.mark.parametrize(("mode", "reducer"), ALLOWED)


# Resume: at every step of a period, twice in a row, each rank to the bit.


def saved(loop: Loop) -> dict[str, Any]:
    state = {
        "weights": loop.flat.snapshot(),
        "optimizer": loop.optimizer.state_dict(),
        "sync": loop.sync.state_dict(),
        "reducer": loop.reducer.state_dict(),
    }
    return copy.deepcopy(state)


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


# Traffic: counted equals what the pieces state, and for some of them a formula that knows nothing of the code.


def count(mode: str, reducer: str) -> tuple[CommStats, list[Collective], int]:
    loop = Loop(ALL[mode](), reducer=REDUCERS[reducer](), model=norm_net).run(STEPS)
    loop.sync.consensus_distance()
    with loop.sync.eval_weights():
        pass
    loop.flush()
    return loop.topology.world.stats, internals(loop.sync).traffic(STEPS), loop.syncs


def assert_stated(stats: CommStats, stated: list[Collective], rank: int = 0) -> None:
    """A broadcast is sent by rank 0 alone."""
    sent = [each for each in stated if rank == 0 or each.kind != "broadcast"]
    assert stats.payload_bytes == sum(each.total_bytes for each in stated)
    assert stats.calls == sum(each.calls for each in stated)
    assert stats.wire_bytes == pytest.approx(sum(each.wire_bytes for each in sent), abs=stats.calls)


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
    "fragments by modules": (partial(StreamingDiLoCo, period=4, fragments=(("1",), ("0", "3"))), "sign", 6),
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


# Buffers.


def buffers_after(mode: str, policy: str) -> dict[str, Any]:
    loop = Loop(ALL[mode](buffers=policy), model=norm_net)
    world = loop.topology.world
    batches = 2 + world.rank  # ranks have seen different numbers of batches
    for _ in range(batches):
        loop.module(random_batch(1, world.rank)[0])
    mine = loop.flat.buffers.clone(), int(loop.flat.others[0])
    everybody = torch.stack(world.all_gather(mine[0]))
    with loop.sync.eval_weights():
        evaluated = loop.flat.buffers.clone()
    loop.sync.flush(1)
    return {
        "before": mine,
        "mean": everybody.mean(0),
        "first": everybody[0],
        "after": (loop.flat.buffers.clone(), int(loop.flat.others[0])),
        "evaluated": evaluated,
    }


POLICIES = [(mode, policy) for mode, make in ALL.items() for policy in choices(make(), "buffers")]


@pytest.mark.parametrize(("mode", "policy"), POLICIES)
def test_buffer_policies(ranks2: RankPool, mode: str, policy: str) -> None:
    """DDP under no_sync lets BatchNorm statistics drift, and torch's averagers never repair them (torch #74894)."""
    zero, one = ranks2.run(buffers_after, mode, policy)
    assert apart(zero["before"][0], one["before"][0]) > 1e-3
    for result, own_count in ((zero, 2), (one, 3)):
        statistics, batches = result["after"]
        wanted, count = {
            "average": (result["mean"], own_count if TRAITS[mode].neighbours_only else 3),
            "rank0": (result["first"], 2),
        }.get(policy, (result["before"][0], own_count))
        assert apart(result["evaluated"], wanted) < 1e-15
        if TRAITS[mode].sends == "nothing":  # which evaluates a consensus and trains on with its own
            wanted, count = result["before"]
        assert apart(statistics, wanted) < 1e-15
        assert batches == count


class WithOddBuffers(nn.Module):
    """Buffers that do not fit beside fp64 parameters: fp32, bool, and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3, dtype=DTYPE)
        rank = torch.distributed.get_rank()
        self.register_buffer("narrow", torch.tensor([1.0 + rank, 3.0]))
        self.register_buffer("flag", torch.tensor([rank == 1, False]))
        self.register_buffer("scratch", torch.tensor([float(rank)]), persistent=False)

    def forward(self, inputs: Tensor) -> Any:
        return self.linear(inputs)


def odd_buffers() -> tuple[list[float], list[bool], float]:
    loop = Loop(LocalSGD(period=1), model=WithOddBuffers)
    module = loop.module
    assert isinstance(module, WithOddBuffers)
    narrow, flag, scratch = module.narrow, module.flag, module.scratch
    assert isinstance(narrow, Tensor) and isinstance(flag, Tensor) and isinstance(scratch, Tensor)
    with torch.no_grad():
        narrow[0] = 1.0 + loop.topology.world.rank
        flag[0] = loop.topology.world.rank == 1
    loop.run(1)
    return narrow.tolist(), flag.tolist(), scratch.item()


def test_buffers_of_other_types(ranks2: RankPool) -> None:
    assert ranks2.run(odd_buffers) == [([1.5, 3.0], [True, False], 0.0), ([1.5, 3.0], [True, False], 1.0)]


# Optimizer state.


STATES = [(mode, policy) for mode, make in ALL.items() for policy in choices(make(), "optimizer_state")]


def momentum_after(mode: str, policy: str) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return first moments around a synchronisation after three steps: own, mean, new; and its step count."""
    loop = Loop(ALL[mode](optimizer_state=policy), optimizer=lambda p: AdamW(p, lr=0.01)).run(3)
    key = next(iter(loop.optimizer.state))
    mine = loop.optimizer.state[key]["exp_avg"].clone()
    mean = torch.stack(loop.topology.world.all_gather(mine)).mean(0)
    loop.flush()
    state = loop.optimizer.state.get(key, {})
    return mine, mean, state.get("exp_avg", torch.empty(0)), int(state.get("step", 0))


@pytest.mark.parametrize(("mode", "policy"), STATES)
def test_optimizer_state_policies(ranks2: RankPool, mode: str, policy: str) -> None:
    results = ranks2.run(momentum_after, mode, policy)
    assert apart(results[0][0], results[1][0]) > 1e-6
    for mine, mean, after, steps in results:
        if policy == "reset":
            assert len(after) == steps == 0
        else:
            assert steps == 3
            assert apart(after, mine if policy == "local" else mean) < 1e-15


def a_group_a_head(parameters: Iterable[nn.Parameter]) -> AdamW:
    weights_and_biases = list(parameters)
    return AdamW([{"params": weights_and_biases[:2]}, {"params": weights_and_biases[2:]}], lr=0.1)


def moments_of_some(all_ranks: bool) -> dict[str, list[Tensor]]:
    """Each rank had gradients for one parameter group, or only rank 0 for its own."""
    loop = Loop(LocalSGD(period=1, optimizer_state="average"), model=TwoHeads, optimizer=a_group_a_head)
    rank = loop.topology.world.rank
    if all_ranks or rank == 0:
        loop.module(random_batch(1, rank)[0]).sum().backward()
    loop.optimizer.step()
    before = first_moments(loop)
    loop.sync.after_step(1)
    return {"before": before, "after": first_moments(loop)}


def first_moments(loop: Loop) -> list[Tensor]:
    """Return the first moments of each head's weights; empty where there are none."""
    weights = list(loop.module.parameters())[::2]
    return [loop.optimizer.state.get(p, {}).get("exp_avg", torch.empty(0)).clone() for p in weights]


@pytest.mark.parametrize("all_ranks", [True, False])
def test_moments_that_only_one_rank_has_meet_zeros(ranks2: RankPool, all_ranks: bool) -> None:
    """Neither those of another parameter of the same shape, nor nobody, for ever."""
    zero, one = ranks2.run(moments_of_some, all_ranks)
    assert apart(zero["after"][0], zero["before"][0] / 2) < 1e-15
    assert [len(moment) for moment in zero["after"]] == [3, 0]
    if all_ranks:
        assert apart(one["after"][1], one["before"][1] / 2) < 1e-15
    assert [len(moment) for moment in one["after"]] == [0, 3 if all_ranks else 0]


class TwoHeads(nn.Module):
    """Each rank trains a head of its own, so each has gradients that the other lacks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.heads = nn.ModuleList([nn.Linear(5, 3, dtype=DTYPE) for _ in range(2)])

    def forward(self, inputs: Tensor) -> Any:
        return self.heads[torch.distributed.get_rank()](inputs)


def two_heads(optimizer_state: OptimizerPolicy) -> tuple[float, bool]:
    loop = Loop(
        LocalSGD(period=1, optimizer_state=optimizer_state), model=TwoHeads, optimizer=lambda p: AdamW(p, lr=0.1)
    )
    started = loop.weights
    local = Loop(Independent(), model=TwoHeads, optimizer=lambda p: AdamW(p, lr=0.1)).run(1)
    expected = local.weights
    world = local.topology.world
    world.all_reduce_(expected)
    loop.run(1)
    assert apart(started, loop.weights) > 0.01
    loop.run(2)  # the next steps must not trip over state that averaging left behind
    return apart(train_once(optimizer_state), expected / world.size), True


def train_once(optimizer_state: OptimizerPolicy) -> Tensor:
    sync = LocalSGD(period=1, optimizer_state=optimizer_state)
    return train(sync, 1, model=TwoHeads, optimizer=lambda p: AdamW(p, lr=0.1))


@pytest.mark.parametrize("policy", ["local", "average"])
def test_heads_that_only_one_rank_trained_are_not_mixed_up(ranks2: RankPool, policy: str) -> None:
    """torch's averager skips parameters without gradient, and so averages head A of one rank with head B of another."""
    assert all(distance < 1e-15 for distance, _ in ranks2.run(two_heads, policy))


def one_head_of_two() -> str:
    loop = Loop(InBuckets(), model=TwoHeads)
    try:
        loop.run(1)
    except RuntimeError as error:
        return str(error)
    return ""


def test_gradients_that_ddp_waits_for_in_vain_are_named_before_anything_is_applied(ranks2: RankPool) -> None:
    """DDP says so a step later, and tells to pass it an argument that only its caller can."""
    for rank, message in enumerate(ranks2.run(one_head_of_two)):
        assert f"backward left out heads.{1 - rank}.weight, heads.{1 - rank}.bias, so" in message
        assert "use sync=compressed" in message


def compressed_heads() -> float:
    loop = Loop(Compressed(), model=TwoHeads)
    return loop.run(3).sync.consensus_distance()


def test_the_remedy_works(ranks2: RankPool) -> None:
    assert ranks2.run(compressed_heads) == [0.0, 0.0]


# Evaluation.


def evaluate_and_return(mode: str) -> tuple[bool, bool, float]:
    loop = Loop(ALL[mode](), model=norm_net).run(3)
    own = loop.flat.snapshot()
    mean = loop.weights
    loop.topology.world.all_reduce_(mean)
    mean /= loop.topology.world.size
    if loop.sync.traits.consensus == "anchor":
        mean = loop.sync.anchor.clone()  # type: ignore[attr-defined]
    with loop.sync.eval_weights():
        distance = apart(loop.flat.parameters, mean)
    restored = all(map(torch.equal, loop.flat.snapshot(), own))
    try:
        with loop.sync.eval_weights():
            raise RuntimeError("evaluation failed")
    except RuntimeError:
        restored_after_error = all(map(torch.equal, loop.flat.snapshot(), own))
    return restored, restored_after_error, distance


@MODES
def test_evaluation_sees_the_consensus_and_leaves_no_trace(ranks3: RankPool, mode: str) -> None:
    for restored, restored_after_error, distance in ranks3.run(evaluate_and_return, mode):
        assert restored
        assert restored_after_error
        assert distance < 1e-15


# Accumulation: H counts optimizer steps, and only the last micro-batch synchronises.


def accumulate(mode: str) -> tuple[float, int, int]:
    """Two micro-batches a step against one batch of both."""
    one = Loop(ALL[mode](), batches=lambda step, rank: double_batch(step, rank)).run(STEPS).flush()
    two = Loop(ALL[mode]())
    for step in range(1, STEPS + 1):
        rank = two.topology.world.rank
        for part in range(2):
            inputs, target = (tensor.chunk(2)[part] for tensor in double_batch(step, rank))
            with two.sync.backward_context(step, last_micro_batch=part == 1):
                (nn.functional.mse_loss(two.model(inputs), target) / 2).backward()
        two.sync.before_step(step)
        two.optimizer.step()
        two.sync.after_step(step)
        two.optimizer.zero_grad()
    two.sync.flush(STEPS)
    one_stats, two_stats = one.topology.world.stats, two.topology.world.stats
    return apart(one.weights, two.weights), one_stats.payload_bytes, two_stats.payload_bytes


def double_batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    first, second = random_batch(step, rank), random_batch(step, rank + 500)
    return torch.cat((first[0], second[0])), torch.cat((first[1], second[1]))


@MODES
def test_accumulation_changes_neither_the_result_nor_the_traffic(ranks2: RankPool, mode: str) -> None:
    """accelerate's LocalSGD counts micro-batches, and so synchronises twice as often here."""
    for distance, bytes_of_one, bytes_of_two in ranks2.run(accumulate, mode):
        assert distance < 1e-12
        assert bytes_of_one == bytes_of_two


# Refusals, all before anything is exchanged.


@pytest.mark.parametrize("name", REDUCERS)
def test_gradients_in_buckets_have_no_place_for_error_feedback(name: str) -> None:
    """DDP regroups its buckets after the first backward: a resumed residual would land on other parameters. PowerSGD
    waits until they stay; see test_traps."""
    model, reducer = mlp(), REDUCERS[name]()
    if not reducer.traits.remembers or reducer.traits.works_in_buckets:
        AllReduce().setup(model, sgd()(model.parameters()), alone(), reducer)
        return
    with pytest.raises(ValueError, match=r"use sync=compressed with it, or reducer=bf16"):
        AllReduce().setup(model, sgd()(model.parameters()), alone(), reducer)


@pytest.mark.parametrize("sync", [LocalSGD(period=2), PostLocalSGD(switch_step=1, period=2)])
def test_lossy_reducer_with_raw_parameters(sync: LocalSGD) -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"sync=parameter_update sync\.combine=mean"):
        sync.setup(model, sgd()(model.parameters()), alone(), Cast(dtype="bf16"))


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        (LocalSGD, {"period": 0}, "period"),
        (LocalSGD, {"period": 2.0}, "period"),
        (LocalSGD, {"period": True}, "period"),
        (LocalSGD, {"period": 2, "buffers": "mean"}, "buffers"),
        (LocalSGD, {"period": 2, "optimizer_state": "forget"}, "optimizer_state"),
        (DiLoCo, {"period": 2, "outer_lr": -0.1}, "outer_lr"),
        (DiLoCo, {"period": 2, "outer_lr": float("nan")}, "outer_lr"),
        (DiLoCo, {"period": 2, "outer_momentum": 1.5}, "outer_momentum"),
        (ParameterUpdate, {"period": 2, "combine": "max"}, "combine"),
        (PostLocalSGD, {"period": 2, "switch_step": -1}, "switch_step"),
        (Cast, {"dtype": "int8"}, "dtype"),
        (Int8, {"block": 0}, "block"),
        (TopK, {"ratio": 0}, "ratio"),
        (TopK, {"ratio": 1.5}, "ratio"),
        (PowerSGD, {"rank": 0}, "rank"),
        (PowerSGD, {"min_compression": -1}, "min_compression"),
    ],
)
def test_values_out_of_range(kind: type, values: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field}: found .*, expected"):
        kind(**values)


def differing_models() -> str:
    width = 4 + torch.distributed.get_rank()
    try:
        Loop(LocalSGD(period=1), model=lambda: nn.Linear(5, width, dtype=DTYPE))
    except ValueError as error:
        return str(error)
    return ""


def test_ranks_with_different_models_are_named(ranks3: RankPool) -> None:
    messages = ranks3.run(differing_models)
    assert len(set(messages)) == 1
    assert "ranks [1, 2]" in messages[0]


def frozen_on_rank_1(mode: str) -> str:
    def model() -> nn.Module:
        layers = mlp()
        layers[0].weight.requires_grad_(torch.distributed.get_rank() != 1)  # type: ignore[index]
        return layers

    try:
        Loop(ALL[mode](), model=model).run(5).flush()
    except ValueError as error:
        return str(error)
    return ""


@MODES
def test_ranks_that_train_other_parameters_are_named_where_they_would_meet_in_backward(
    ranks2: RankPool, mode: str
) -> None:
    """DDP's buckets would differ, and gloo ends the process. Elsewhere a frozen parameter is one that stays."""
    in_backward = ALL[mode]().traits.averages_in_backward
    for message in ranks2.run(frozen_on_rank_1, mode):
        assert ("(requires_grad) differ between ranks: not as on rank 0 are ranks [1]" in message) == in_backward
        assert in_backward or not message


def test_mixed_dtypes_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match=r"0\.weight: torch\.float32.*1\.weight: torch\.float64"):
        Independent().setup(model, sgd()(model.parameters()), alone(), Dense())


def nodes(ranks_per_node: int) -> str | tuple[int, int, list[float]]:
    try:
        topology = Topology.create(ranks_per_node)
    except ValueError as error:
        return str(error)
    rank = torch.tensor([float(topology.world.rank)])
    in_node, across = rank.clone(), rank.clone()
    topology.node.all_reduce_(in_node)
    topology.across.all_reduce_(across)
    return topology.node.rank, topology.across.rank, [in_node.item(), across.item()]


def test_ranks_per_node(ranks4: RankPool) -> None:
    assert ranks4.run(nodes, 2) == [(0, 0, [1.0, 2.0]), (1, 0, [1.0, 4.0]), (0, 1, [5.0, 2.0]), (1, 1, [5.0, 4.0])]
    assert "found 3, expected a divisor of the world size 4, one of [1, 2, 4]" in ranks4.run(nodes, 3)[0]


def test_the_summed_update_says_what_its_step_is() -> None:
    def remark(combine: Literal["sum", "mean"], outer_lr: float) -> Problem:
        (found,) = ParameterUpdate(period=1, combine=combine, outer_lr=outer_lr).problems(RunFacts(world_size=4))
        return found

    text, risky = (found := remark("sum", 1.0)).text, not found.harmless
    assert not found.fatal
    assert "effective step 4" in text
    assert "50%" in text
    assert risky
    assert remark("sum", 0.25).harmless
    assert remark("mean", 1.0).harmless


def unstable(curvature: float) -> float:
    """One dimension: error times 1 - K c a round, with c = 1 - (1 - lr curvature)^H."""

    def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
        return torch.full((1, 1), curvature**0.5, dtype=DTYPE), torch.zeros(1, 1, dtype=DTYPE)

    def point() -> nn.Module:
        layer = nn.Linear(1, 1, bias=False, dtype=DTYPE)
        nn.init.ones_(layer.weight)
        return layer

    sync = ParameterUpdate(period=2, combine="sum", outer_lr=1.0)
    return train(sync, 2, model=point, batches=batch, optimizer=sgd(lr=0.1)).item()


@pytest.mark.parametrize("curvature", [0.5, 2.0, 4.0])
def test_the_stability_formula_is_what_happens(ranks3: RankPool, curvature: float) -> None:
    gradient_scale = 2 * curvature  # of mean square error
    contraction = 1 - (1 - 0.1 * gradient_scale) ** 2
    assert ranks3.run(unstable, curvature)[0] == pytest.approx(1 - 3 * contraction, abs=1e-12)


def reducers_alone(reducer: Reducer) -> Tensor:
    tensor = torch.tensor([1.0, -2.5, 1e-3])
    reducer.mean_(tensor, LocalComm())
    return tensor


@pytest.mark.parametrize("name", [name for name, make in REDUCERS.items() if not make().traits.remembers])
def test_a_mean_of_one_is_itself_but_for_rounding(name: str) -> None:
    assert apart(reducers_alone(REDUCERS[name]()), torch.tensor([1.0, -2.5, 1e-3])) < 1e-5


@MODES
def test_a_mode_is_itself_and_no_other(mode: str) -> None:
    """Not its fields: some are there only after `setup`, and a comparison of tensors is no answer."""
    one, other = ALL[mode](), ALL[mode]()
    assert one == one
    assert one != other
    Loop(one, topology=alone())
    assert one == one and one != other and len({one, other}) == 2


def test_allreduce_alone_needs_no_wrapper() -> None:
    loop = Loop(AllReduce(), topology=alone())
    assert loop.model is loop.module
