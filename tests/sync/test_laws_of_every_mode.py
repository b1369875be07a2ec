"""Laws that hold for every mode, in fp64 on real ranks, each with a control.

A function whose name begins with `measure` runs on every rank.
"""

from functools import partial
from itertools import pairwise
from typing import Literal

import pytest
import torch
from loops import InBuckets, Loop, alone, apart, mlp, random_batch, sgd, train
from mode_cases import ALL, MODES, TOLERANCE, TRAITS, Make, largest
from rank_pool import RankPool
from torch import Tensor, nn
from torch.optim import SGD

from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.reducers import Cast
from ddp_agent.sync import (
    AllReduce,
    DiLoCo,
    ParameterUpdate,
    SlowMo,
    StreamingDiLoCo,
)


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
    "streaming_diloco, neutral": partial(StreamingDiLoCo, period=4, fragments=2, delay=0, outer_lr=1, outer_momentum=0),
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
