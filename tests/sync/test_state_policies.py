"""Policies for buffers and for the optimizer's state."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from loops import DTYPE, InBuckets, Loop, apart, norm_net, random_batch, train
from mode_cases import ALL, TRAITS
from pieces import choices
from rank_pool import RankPool
from torch import Tensor, nn
from torch.optim import AdamW

from ddp_agent.sync import (
    Compressed,
    Independent,
    LocalSGD,
)
from ddp_agent.sync.engine.state_policies import OptimizerPolicy

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
