"""slowmo, easgd and compressed: what they are cases of, and their definitions."""

import pytest
import torch
from loops import Loop, apart, sgd, train
from rank_pool import RankPool
from torch.optim import AdamW

from ddp_agent.config.problems import RunFacts
from ddp_agent.reducers import Cast
from ddp_agent.sync import EASGD, AllReduce, Compressed, Independent, LocalSGD, SlowMo
from ddp_agent.sync.engine.gradients import FlatGradients

TOLERANCE = 1e-12

# slowmo


def measure_slowmo() -> dict[str, float]:
    optimizer = sgd(momentum=0.9)
    local = train(LocalSGD(period=4), 10, optimizer=optimizer)
    return {
        "without momentum": apart(train(SlowMo(period=4, slow_momentum=0), 10, optimizer=optimizer), local),
        "control": apart(train(SlowMo(period=4, slow_momentum=0.5), 10, optimizer=optimizer), local),
        "control lr": apart(train(SlowMo(period=4, slow_momentum=0, slow_lr=0.5), 10, optimizer=optimizer), local),
    }


def test_slowmo_without_momentum_is_local_sgd(ranks3: RankPool) -> None:
    for distances in ranks3.run(measure_slowmo):
        assert distances["without momentum"] < TOLERANCE
        assert min(distances["control"], distances["control lr"]) > 1e-3


def measure_slowmo_definition(lrs: list[float]) -> float:
    """Three periods of two steps, each with a learning rate of its own, against u <- beta u + D / g."""
    loop, local = Loop(SlowMo(period=2, slow_lr=0.7, slow_momentum=0.6)), Loop(Independent())
    world, anchor = local.topology.world, local.weights
    momentum = torch.zeros_like(anchor)
    for lr in lrs:
        for each in (loop, local):
            each.optimizer.param_groups[0]["lr"] = lr
            each.run(2)
        change = anchor - local.weights
        world.all_reduce_(change)
        momentum = 0.6 * momentum + change / world.size / lr
        anchor = anchor - 0.7 * lr * momentum
        local.flat.parameters.copy_(anchor)
    return apart(loop.weights, anchor)


def test_slowmo_is_its_definition_under_a_schedule(ranks2: RankPool) -> None:
    """fairscale's divides by the learning rate of now what was done with another, and forgets its momentum."""
    assert max(ranks2.run(measure_slowmo_definition, [0.1, 0.05, 0.2])) < TOLERANCE


def slowmo_without_lr() -> tuple[bool, float]:
    """The last step of a cosine: the period's first step moved, the learning rate is 0 when it ends."""
    loop = Loop(SlowMo(period=2)).run(3)
    before = loop.weights
    moved = apart(before, loop.sync.anchor)  # type: ignore[attr-defined]
    loop.optimizer.param_groups[0]["lr"] = 0.0
    loop.run(3)
    return bool(loop.weights.isfinite().all() and loop.sync._momentum.isfinite().all()), moved  # type: ignore[attr-defined]


def test_slowmo_survives_a_learning_rate_of_zero(ranks2: RankPool) -> None:
    """fairscale divides by it."""
    assert all(finite and moved > 0 for finite, moved in ranks2.run(slowmo_without_lr))


# easgd


def measure_easgd() -> tuple[float, float, bool]:
    loop, local = Loop(EASGD(period=2, alpha=0.1)), Loop(Independent())
    world = local.topology.world
    centre = local.weights
    for _ in range(3):
        loop.run(2)
        local.run(2)
        own = local.weights - centre
        everybody = own.clone()
        world.all_reduce_(everybody)
        local.flat.parameters.sub_(0.1 * own)
        centre += 0.1 * everybody
    centres = world.all_gather(loop.sync.anchor)  # type: ignore[attr-defined]
    return (
        apart(loop.weights, local.weights),
        apart(centres[0], centre),
        all(torch.equal(other, centres[0]) for other in centres),
    )


def test_easgd_is_its_definition_and_all_ranks_keep_one_centre(ranks3: RankPool) -> None:
    for weights, centre, same in ranks3.run(measure_easgd):
        assert max(weights, centre) < TOLERANCE
        assert same


@pytest.mark.parametrize(("alpha", "ranks", "risky"), [(0.1, 4, False), (0.1, 10, True), (0.9, 1, False)])
def test_easgd_warns_where_its_centre_overshoots(alpha: float, ranks: int, risky: bool) -> None:
    (remark,) = EASGD(period=2, alpha=alpha).problems(RunFacts(world_size=ranks))
    assert (remark.fatal, not remark.harmless) == (False, risky)
    assert (f"lower sync.alpha to less than {1 / ranks:g}" in remark.text) == risky


# compressed


def adamw(parameters: object) -> AdamW:
    return AdamW(parameters, lr=0.05)  # type: ignore[arg-type]


def measure_compressed() -> dict[str, float]:
    exact = train(AllReduce(), optimizer=adamw)
    narrow = train(Compressed(), optimizer=adamw, reducer=Cast(dtype="bf16"))
    return {"dense": apart(train(Compressed(), optimizer=adamw), exact), "bf16": apart(narrow, exact)}


def test_compressed_without_compression_is_allreduce(ranks3: RankPool) -> None:
    for distances in ranks3.run(measure_compressed):
        assert distances["dense"] < TOLERANCE
        assert 1e-5 < distances["bf16"] < 0.5


def collects_in_place() -> tuple[bool, bool]:
    loop = Loop(Compressed())
    sync = loop.sync
    assert isinstance(sync, Compressed)
    with sync.backward_context(1, last_micro_batch=True):
        loop.model(loop.batches(1, 0)[0]).sum().backward()
    gathered = torch.cat([parameter.grad.flatten() for parameter in loop.module.parameters()])  # type: ignore[union-attr]
    assert isinstance(sync._gradients, FlatGradients)
    return torch.equal(gathered, sync._gradients.tensor), bool(gathered.abs().sum() > 0)


def test_gradients_are_one_tensor_without_packing(ranks1: RankPool) -> None:
    assert ranks1.run(collects_in_place) == [(True, True)]
