"""Laws between the modes, in fp64 on real ranks. Every law has a control: a neighbour that must differ.

A function whose name begins with `measure` runs on every rank and returns how far apart two trainings are.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import pieces
import pytest
import torch
from loops import DTYPE, InBuckets, Loop, MakeOptimizer, alone, apart, mlp, random_batch, sgd, train
from rank_pool import RankPool
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.reducers import Cast
from ddp_agent.sync import (
    AllReduce,
    DiLoCo,
    Independent,
    LocalSGD,
    ParameterUpdate,
    PostLocalSGD,
    SlowMo,
    StreamingDiLoCo,
    SyncStrategy,
)
from ddp_agent.sync.base import SyncTraits
from ddp_agent.sync.engine.state_policies import OptimizerPolicy

TOLERANCE = 1e-12
NEVER = 10**9

Make = Callable[..., SyncStrategy]


def adamw(parameters: Any) -> AdamW:
    return AdamW(parameters, lr=0.05)


def measure(one: SyncStrategy, other: SyncStrategy, optimizer: MakeOptimizer | None = None, steps: int = 8) -> float:
    return apart(train(one, steps, optimizer=optimizer), train(other, steps, optimizer=optimizer))


def largest(distances: list[float]) -> float:
    assert all(math.isfinite(distance) for distance in distances)
    return max(distances)


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


# Laws that hold for every mode.

ALL: dict[str, Make] = {**pieces.MODES, "allreduce in buckets": InBuckets}
TRAITS = {mode: make().traits for mode, make in ALL.items()}
MODES = pytest.mark.parametrize("mode", ALL)


def has_replicas(traits: SyncTraits) -> bool:
    """Whether all ranks hold something equal, bit for bit, at least right after a synchronisation."""
    return traits.has_anchor or traits.identical in ("always", "after_sync")


def measure_when_synced(mode: str) -> list[tuple[int, Tensor]]:
    """The count of synchronisations and the parameters, after every step and after the flush."""
    loop = Loop(ALL[mode]())
    history = [(loop.run(1).syncs, loop.weights) for _ in range(10)]
    return [*history, (loop.flush().syncs, loop.weights)]


@MODES
def test_every_rank_holds_the_same_bits_after_a_sync_and_no_sooner(ranks3: RankPool, mode: str) -> None:
    """The ranks of a pool are one node."""
    histories = ranks3.run(measure_when_synced, mode)
    same = [all(torch.equal(history[i][1], histories[0][i][1]) for history in histories) for i in range(11)]
    counts = [0, *(count for count, _ in histories[0])]
    synced = [after > before for before, after in pairwise(counts)]
    traits = TRAITS[mode]
    if traits.neighbours_only:  # a ring of three has everybody's mean, but each sums it in an order of its own
        assert not any(alike for alike, sync in zip(same, synced, strict=True) if not sync)
        return
    expected = {
        "always": [True] * 11,
        "after_sync": [*synced[:10], True],
        "after_flush": [False] * 10 + [True],
        "never": [False] * 11,
    }
    assert same == expected[traits.identical]
    assert any(synced) == (traits.sends != "nothing")


def measure_permuted(mode: str, *data_of: int) -> Tensor:
    loop = Loop(ALL[mode](), batches=lambda step, rank: random_batch(step, data_of[rank]))
    return loop.run(10).flush().weights


@MODES
def test_permuting_ranks_changes_only_rounding(ranks3: RankPool, mode: str) -> None:
    plain, permuted = ranks3.run(measure_permuted, mode, 0, 1, 2), ranks3.run(measure_permuted, mode, 1, 2, 0)
    # Where ranks never hold one model, the models change places.
    moved = 1 if TRAITS[mode].identical == "never" else 0
    assert all(apart(permuted[rank], plain[(rank + moved) % 3]) < TOLERANCE for rank in range(3))
    control = ranks3.run(measure_permuted, mode, 1, 1, 0)  # one rank's data twice
    assert apart(control[1], plain[(1 + moved) % 3]) > 1e-4


def measure_still(mode: str, lr: float) -> float:
    started = Loop(ALL[mode](), optimizer=sgd(lr=0.0)).weights
    return apart(train(ALL[mode](), 9, optimizer=sgd(lr=lr, momentum=0.9)), started)


@MODES
def test_without_learning_rate_nothing_moves(ranks2: RankPool, mode: str) -> None:
    assert largest(ranks2.run(measure_still, mode, 0.0)) == 0.0
    assert min(ranks2.run(measure_still, mode, 0.1)) > 1e-2  # control


# An outer optimizer, a sum's step and a spring act on one rank, too, unless they are set so that they change nothing.
NEUTRAL: dict[str, Make] = {
    "parameter_update, neutral": partial(ParameterUpdate, period=4),
    "diloco, neutral": partial(DiLoCo, period=4, outer_lr=1, outer_momentum=0),
    "streaming_diloco, neutral": partial(StreamingDiLoCo, period=4, fragments=2, outer_lr=1, outer_momentum=0),
    "slowmo, neutral": partial(SlowMo, period=4, slow_momentum=0),
}
ON_ONE_RANK: dict[str, Make] = {**ALL, **NEUTRAL}


def measure_alone(mode: str, in_a_group: bool) -> float:
    torch.manual_seed(1)
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(1, 11):
        inputs, target = random_batch(step, 0)
        nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    plain = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    topology = None if in_a_group else alone()
    return apart(plain, train(ON_ONE_RANK[mode](), 10, optimizer=sgd(momentum=0.9), topology=topology))


@pytest.mark.parametrize("mode", ON_ONE_RANK)
def test_one_rank_is_a_plain_loop_unless_the_mode_says_that_it_acts_alone(ranks1: RankPool, mode: str) -> None:
    """With a process group of one rank, and without any."""
    for distance in (*ranks1.run(measure_alone, mode, True), measure_alone(mode, False)):
        if ON_ONE_RANK[mode]().traits.acts_alone:
            assert distance > 1e-3
        else:
            assert distance < TOLERANCE


def test_there_are_modes_of_both_kinds() -> None:
    acting = {mode for mode, make in ON_ONE_RANK.items() if make().traits.acts_alone}
    assert {"diloco", "slowmo", "easgd", "parameter_update", "streaming_diloco"} <= acting
    assert not acting & {*NEUTRAL, "local_sgd", "allreduce", "gossip"}


def measure_start(mode: str) -> Tensor:
    def model_of_rank() -> nn.Module:
        model = mlp()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.distributed.get_rank())
        return model

    return Loop(ALL[mode](), model=model_of_rank).weights


@MODES
def test_all_ranks_start_from_the_weights_of_rank_0(ranks2: RankPool, mode: str) -> None:
    zero, one = ranks2.run(measure_start, mode)
    expected = torch.cat([parameter.detach().flatten() for parameter in mlp().parameters()])
    assert torch.equal(zero, expected)
    assert torch.equal(one, expected)


def measure_distance(mode: str, steps: int) -> tuple[float, float, bool]:
    """The mode's own figure, the definition from everybody's weights, and whether the last step synchronised."""
    loop = Loop(ALL[mode]()).run(steps - 1)
    before = loop.syncs
    loop.run(1)
    everybody = torch.stack(loop.topology.world.all_gather(loop.weights))
    by_definition = (everybody - everybody.mean(0)).square().sum(1).mean().sqrt().item()
    return loop.sync.consensus_distance(), by_definition, loop.syncs > before


@MODES
@pytest.mark.parametrize("steps", [3, 4])
def test_consensus_distance(ranks3: RankPool, mode: str, steps: int) -> None:
    for measured, by_definition, synced in ranks3.run(measure_distance, mode, steps):
        assert measured == pytest.approx(by_definition, abs=1e-14)
        identical = {"always": True, "after_sync": synced, "after_flush": False, "never": False}
        # Among three ranks a ring's neighbours are all there are.
        together = synced if TRAITS[mode].neighbours_only else identical[TRAITS[mode].identical]
        assert (measured < 1e-14) == together


# A model that is one bucket for DDP is averaged without DDP.


def measure_without_buckets() -> tuple[float, list[int]]:
    without, within = Loop(AllReduce()), Loop(InBuckets())
    loops = [loop.run(6) for loop in (without, within)]
    assert isinstance(within.model, nn.parallel.DistributedDataParallel)
    assert without.model is without.module
    return apart(*(loop.weights for loop in loops)), [loop.topology.world.stats.wire_bytes for loop in loops]


@pytest.mark.parametrize("size", [2, 3])
def test_one_bucket_is_averaged_as_ddp_does(size: int, request: pytest.FixtureRequest) -> None:
    """To the bit where a sum of two has one order only."""
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    for distance, (without, within) in pool.run(measure_without_buckets):
        assert distance <= (0 if size == 2 else TOLERANCE)
        assert without == within > 0


def wrapped() -> bool:
    return isinstance(Loop(AllReduce(), model=lambda: nn.Linear(512, 512)).model, nn.parallel.DistributedDataParallel)


def test_a_model_of_several_buckets_is_left_to_ddp(ranks2: RankPool) -> None:
    """A megabyte and a little, as its first bucket."""
    assert ranks2.run(wrapped) == [True, True]


# Narrow types lose what their precision says, and no more.


def measure_cast(dtype: Literal["bf16", "fp16"], mode: str) -> float:
    makes: dict[str, Make] = {"allreduce": AllReduce, "diloco": partial(DiLoCo, period=4)}
    make = makes[mode]
    return apart(train(make(), reducer=Cast(dtype=dtype)), train(make()))


@pytest.mark.parametrize("mode", ["allreduce", "diloco"])
@pytest.mark.parametrize(("dtype", "precision"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_cast_errs_within_its_precision(ranks2: RankPool, dtype: str, precision: float, mode: str) -> None:
    distance = largest(ranks2.run(measure_cast, dtype, mode))
    assert precision / 1000 < distance < precision * 4


def reduce_large() -> float:
    """The sum of two of these overflows fp16, their mean does not."""
    tensor = torch.full((3,), 60000.0)
    Cast(dtype="fp16").mean_(tensor, world_comm())
    return tensor.max().item()


def test_fp16_divides_before_it_sums(ranks2: RankPool) -> None:
    assert ranks2.run(reduce_large) == [60000.0, 60000.0]
