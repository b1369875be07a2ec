"""Laws between the modes, in fp64 on real ranks. Every law has a control: a neighbour that must differ.

A function whose name begins with `measure` runs on every rank and returns how far apart two trainings are.
"""

from functools import partial
from typing import Any

import pytest
import torch
from loops import DTYPE, Loop, MakeOptimizer, alone, apart, random_batch, sgd, train
from mode_cases import TOLERANCE, largest
from rank_pool import RankPool
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from ddp_agent.sync import (
    AllReduce,
    DiLoCo,
    Independent,
    LocalSGD,
    ParameterUpdate,
    PostLocalSGD,
    SyncStrategy,
)
from ddp_agent.sync.engine.state_policies import OptimizerPolicy

NEVER = 10**9


def adamw(parameters: Any) -> AdamW:
    return AdamW(parameters, lr=0.05)


def measure(one: SyncStrategy, other: SyncStrategy, optimizer: MakeOptimizer | None = None, steps: int = 8) -> float:
    return apart(train(one, steps, optimizer=optimizer), train(other, steps, optimizer=optimizer))


# H = 1 averages before the optimizer or after it: the same for optimizers that are linear in the gradient.

LINEAR = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "weight_decay": 0.01},
]


def measure_period_one(options: dict[str, Any], policy: OptimizerPolicy) -> float:
    return measure(LocalSGD(period=1, optimizer_state=policy), AllReduce(), sgd(**options))


@pytest.mark.parametrize("policy", ["local", "average"])
@pytest.mark.parametrize("options", LINEAR)
def test_local_sgd_with_period_one_is_allreduce(
    ranks3: RankPool, options: dict[str, Any], policy: OptimizerPolicy
) -> None:
    assert largest(ranks3.run(measure_period_one, options, policy)) < TOLERANCE


def measure_period_one_with_adamw() -> float:
    return measure(LocalSGD(period=1), AllReduce(), adamw)


def measure_period_one_with_reset_momentum() -> float:
    return measure(LocalSGD(period=1, optimizer_state="reset"), AllReduce(), sgd(momentum=0.9))


class Clipping(SGD):
    """Each rank clips what it has: its own gradient, or the mean."""

    def step(self, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.1)
        return super().step(closure)


def measure_period_one_with_clipping() -> float:
    return measure(LocalSGD(period=1), AllReduce(), lambda parameters: Clipping(parameters, lr=0.1))


def test_control_adamw_forgotten_momentum_and_clipping_break_it(ranks3: RankPool) -> None:
    assert largest(ranks3.run(measure_period_one_with_adamw)) > 1e-3
    assert largest(ranks3.run(measure_period_one_with_reset_momentum)) > 1e-3
    assert largest(ranks3.run(measure_period_one_with_clipping)) > 1e-3


# Data parallelism is only a way to compute one big batch.


def big_batch(step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*(random_batch(step, other) for other in range(ranks)), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def measure_big_batch(make: MakeOptimizer, ranks: int, seen: int) -> float:
    one = train(Independent(), optimizer=make, topology=alone(), batches=partial(big_batch, ranks=seen))
    return apart(train(AllReduce(), optimizer=make), one)


@pytest.mark.parametrize("make", [sgd(), adamw], ids=["sgd", "adamw"])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_times_batch_is_one_rank_with_all(size: int, make: Any, request: pytest.FixtureRequest) -> None:
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    measured = measure_big_batch_with_adamw if make is adamw else measure_big_batch_with_sgd
    assert largest(pool.run(measured, size, size)) < TOLERANCE
    assert largest(pool.run(measured, size, 1)) > 1e-3  # control: one rank's batch is not all


def measure_big_batch_with_sgd(ranks: int, seen: int) -> float:
    return measure_big_batch(sgd(momentum=0.9), ranks, seen)


def measure_big_batch_with_adamw(ranks: int, seen: int) -> float:
    return measure_big_batch(adamw, ranks, seen)


# Averaging parameters, averaging changes, and an outer optimizer that does nothing clever are one thing.


def measure_equal_to_averaging(period: int) -> dict[str, float]:
    optimizer = sgd(momentum=0.9)
    mean = train(LocalSGD(period=period), 7, optimizer=optimizer)
    ranks = torch.distributed.get_world_size()
    return {
        "mean": apart(mean, train(ParameterUpdate(period=period, combine="mean"), 7, optimizer=optimizer)),
        "sum": apart(
            mean,
            train(ParameterUpdate(period=period, combine="sum", outer_lr=1 / ranks), 7, optimizer=optimizer),
        ),
        "diloco": apart(
            mean,
            train(DiLoCo(period=period, outer_lr=1, outer_momentum=0, nesterov=False), 7, optimizer=optimizer),
        ),
        "control": apart(mean, train(ParameterUpdate(period=period, combine="sum"), 7, optimizer=optimizer)),
        "control momentum": apart(
            mean, train(DiLoCo(period=period, outer_lr=1, outer_momentum=0.5), 7, optimizer=optimizer)
        ),
    }


@pytest.mark.parametrize("period", [1, 3])
def test_updates_with_mean_step_one_are_averaging(ranks3: RankPool, period: int) -> None:
    for distances in ranks3.run(measure_equal_to_averaging, period):
        for name, distance in distances.items():
            assert (distance > 1e-3) if name.startswith("control") else (distance < TOLERANCE), name


# The sign and scale of the pseudo-gradient: one inner SGD step makes it lr times the gradient.


def measure_outer_sgd(momentum: float, nesterov: bool, outer_lr: float) -> float:
    outer = DiLoCo(period=1, outer_lr=outer_lr, outer_momentum=momentum, nesterov=nesterov)
    plain = sgd(lr=0.1, momentum=momentum, nesterov=nesterov)
    return apart(train(outer, optimizer=sgd(lr=0.1)), train(AllReduce(), optimizer=plain))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.5, True)])
def test_diloco_with_period_one_is_sgd_with_its_outer_momentum(
    ranks2: RankPool, momentum: float, nesterov: bool
) -> None:
    assert largest(ranks2.run(measure_outer_sgd, momentum, nesterov, 1.0)) < TOLERANCE
    assert largest(ranks2.run(measure_outer_sgd, momentum, nesterov, 0.7)) > 1e-3  # control


def measure_against_torch_outer_sgd(momentum: float, nesterov: bool) -> float:
    """Three rounds of four steps, the outer optimizer being torch's own over the anchor."""
    loop = Loop(DiLoCo(period=4, outer_lr=0.7, outer_momentum=momentum, nesterov=nesterov))
    local = Loop(Independent())
    anchor = nn.Parameter(local.weights)
    outer = SGD([anchor], lr=0.7, momentum=momentum, nesterov=nesterov)
    for _ in range(3):
        loop.run(4)
        local.run(4)
        change = anchor.detach() - local.weights
        local.topology.world.all_reduce_(change)
        anchor.grad = change / local.topology.world.size
        outer.step()
        local.flat.parameters.copy_(anchor.detach())
    return apart(loop.weights, anchor.detach())


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_diloco_outer_step_is_torch_sgd(ranks2: RankPool, momentum: float, nesterov: bool) -> None:
    assert largest(ranks2.run(measure_against_torch_outer_sgd, momentum, nesterov)) < TOLERANCE


# On a quadratic whose Hessian all ranks share, averaging commutes with the (linear) steps, so H does not matter.


class Point(nn.Module):
    """Its output is its parameter times the input, so that a mean square error is a quadratic in the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=DTYPE))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight


def shared_hessian(step: int, rank: int) -> tuple[Tensor, Tensor]:
    curvature = torch.tensor([[1.0, 0.5, 1.5]], dtype=DTYPE)
    return curvature, torch.full((1, 3), float(rank), dtype=DTYPE)


def own_hessian(step: int, rank: int) -> tuple[Tensor, Tensor]:
    curvature, target = shared_hessian(step, rank)
    return curvature * (1 + rank), target


def measure_quadratic(period: int, shared: bool) -> float:
    options = {
        "model": Point,
        "batches": shared_hessian if shared else own_hessian,
        "optimizer": sgd(lr=0.1, momentum=0.9),
    }
    return apart(train(LocalSGD(period=period), 12, **options), train(AllReduce(), 12, **options))


@pytest.mark.parametrize("period", [2, 3, 12])
def test_on_a_shared_quadratic_the_period_does_not_matter(ranks3: RankPool, period: int) -> None:
    assert largest(ranks3.run(measure_quadratic, period, True)) < TOLERANCE
    assert largest(ranks3.run(measure_quadratic, period, False)) > 0.01  # control


# One switch, at which exactly one thing happens once.


def measure_switch() -> dict[str, float]:
    def post(switch_step: int) -> Tensor:
        return train(PostLocalSGD(switch_step=switch_step, period=3), optimizer=sgd(momentum=0.9))

    optimizer = sgd(momentum=0.9)
    two_phases = Loop(AllReduce(), optimizer=optimizer).run(4)
    later = Loop(LocalSGD(period=3), optimizer=optimizer)
    later.flat.parameters.copy_(two_phases.weights)
    later.optimizer.load_state_dict(two_phases.optimizer.state_dict())
    later.batches = lambda step, rank: random_batch(step + 4, rank)
    return {
        "never": apart(post(NEVER), train(AllReduce(), optimizer=optimizer)),
        "at once": apart(post(0), train(LocalSGD(period=3), optimizer=optimizer)),
        "after four": apart(post(4), later.run(4).flush().weights),
        "control": apart(post(4), post(5)),
    }


def test_post_local_sgd_is_allreduce_before_its_switch_and_local_sgd_after(ranks3: RankPool) -> None:
    for distances in ranks3.run(measure_switch):
        assert distances.pop("control") > 1e-4
        assert largest(list(distances.values())) < TOLERANCE


def count_switch_syncs() -> tuple[int, int]:
    loop = Loop(PostLocalSGD(switch_step=4, period=3)).run(9)
    before_flush = loop.syncs
    return before_flush, loop.flush().syncs


def test_syncs_around_the_switch(ranks2: RankPool) -> None:
    """Gradients in steps 1-4, parameters after steps 7, and the two steps left at the flush."""
    assert ranks2.run(count_switch_syncs) == [(5, 6)] * 2
