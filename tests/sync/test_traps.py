"""Defects of other tools that must not come here. Each test names whose; some have their test elsewhere:

accelerate counts micro-batches, and reduces tensor by tensor   test_sync: accumulation; test_mode_traffic
torch's averagers mix heads that one rank trained, skip buffers test_state_policies: heads, buffers
fairscale's SlowMo is in no state_dict, divides by lr = 0       test_outer; test_mode_resume
"""

from functools import partial
from typing import Any

import pytest
import torch
from loops import Loop, apart, mlp, norm_net, random_batch, sgd
from mode_cases import ALL, TRAITS
from rank_pool import RankPool
from torch import Tensor, nn
from torch.optim import LBFGS

from ddp_agent.config.registry import build
from ddp_agent.errors import ConfigError
from ddp_agent.reducers import Dense, PowerSGD
from ddp_agent.sync import AllReduce, LocalSGD, PostLocalSGD, StreamingDiLoCo
from ddp_agent.sync.engine.internals import internals

PACED = [mode for mode, traits in TRAITS.items() if traits.has_period]
# Those that synchronise at the end of a period and at no other time.
PERIODIC = [
    mode
    for mode in PACED
    if not (TRAITS[mode].averages_in_backward or TRAITS[mode].uses_nodes or TRAITS[mode].identical == "after_flush")
]

# torch.distributed's PeriodicModelAverager and PostLocalSGDOptimizer


def when_synced(name: str) -> list[int]:
    loop = Loop(ALL[name]())
    return [loop.run(1).syncs for _ in range(10)] + [loop.flush().syncs]


@pytest.mark.parametrize("name", PERIODIC)
def test_the_first_synchronisation_comes_after_a_whole_period_and_the_last_is_not_forgotten(
    ranks2: RankPool, name: str
) -> None:
    """torch's averager does so after step 1, then 1 + H, and never what is left; exo gym's first has H + 1 steps."""
    assert ranks2.run(when_synced, name) == [[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]] * 2


def period_starts(name: str) -> tuple[int, list[int]]:
    """The step at which the first period begins, and that of the current period after each step and the flush."""
    loop = Loop(ALL[name]())
    first = internals(loop.sync).period_start
    starts = [internals(loop.run(1).sync).period_start for _ in range(10)]
    return first or 0, [*(start or 0 for start in starts), internals(loop.flush().sync).period_start or 0]


@pytest.mark.parametrize("name", PACED)
def test_periods_are_equally_long_from_the_first(ranks2: RankPool, name: str) -> None:
    for first, starts in ranks2.run(period_starts, name):
        assert starts == [*(first + max(0, step - first) // 4 * 4 for step in range(1, 11)), 10]


def with_closure() -> bool:
    """An optimizer that evaluates its closure several times a step."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = LBFGS(model.parameters(), max_iter=3)
    sync = LocalSGD(period=2)
    sync.setup(model, optimizer, Loop(AllReduce()).topology, Dense())
    for step in range(1, 5):
        inputs, target = random_batch(step, internals(sync).world.rank)

        def closure(inputs: Tensor = inputs, target: Tensor = target) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), target)
            loss.backward()
            return loss

        sync.before_step(step)
        optimizer.step(closure)
        sync.after_step(step)
    return sync.consensus_distance() == 0


def test_optimizers_with_a_closure_work(ranks2: RankPool) -> None:
    """PostLocalSGDOptimizer.step(closure) raises: here the optimizer stays the user's own."""
    assert ranks2.run(with_closure) == [True, True]


def keeps_its_place(name: str) -> list[int]:
    """A new object that is given the state of one in the middle of a period synchronises when that one would have."""
    first = Loop(ALL[name]()).run(3)
    second = Loop(ALL[name]())
    second.sync.load_state_dict(first.sync.state_dict())
    second.step = 3
    return [second.run(1).syncs for _ in range(2)]


@pytest.mark.parametrize("name", PERIODIC)
def test_a_resume_in_the_middle_of_a_period_does_not_start_it_again(ranks2: RankPool, name: str) -> None:
    """The counters of torch's averager and of Lightning's are in no checkpoint."""
    assert ranks2.run(keeps_its_place, name) == [[1, 1]] * 2


def begins_late(name: str) -> list[int]:
    loop = Loop(ALL[name]())
    loop.step = 500
    return [loop.run(1).syncs for _ in range(9)]


@pytest.mark.parametrize("name", [mode for mode in PACED if not TRAITS[mode].averages_in_backward])
def test_a_loop_that_does_not_begin_with_step_1_is_synchronised_all_the_same(ranks2: RankPool, name: str) -> None:
    counts = ranks2.run(begins_late, name)
    assert counts[0] == counts[1]
    assert counts[0][-1] - counts[0][0] >= 2


def two_optimizers() -> list[int]:
    """A generator and a critic: each mode belongs to one model and one optimizer, and is given the step."""
    loops = [Loop(LocalSGD(period=3)), Loop(LocalSGD(period=3))]
    for _ in range(6):
        for loop in loops:
            loop.run(1)
    return [loop.syncs for loop in loops]


def test_two_optimizers_do_not_advance_one_counter_twice(ranks2: RankPool) -> None:
    """Lightning's averaging counter moves once an optimizer."""
    assert ranks2.run(two_optimizers) == [[2, 2]] * 2


# Buffers


def statistics_apart(sync: str) -> float:
    make: Any = {"before the switch": partial(PostLocalSGD, switch_step=10, period=4)}.get(sync) or ALL[sync]
    loop = Loop(make(), model=norm_net).run(10).flush()
    everybody = loop.topology.world.all_gather(loop.flat.buffers)
    return max(apart(other, everybody[0]) for other in everybody)


@pytest.mark.parametrize("sync", ["allreduce", "local_sgd", "post_local_sgd", "before the switch"])
def test_batchnorm_statistics_meet_again(ranks3: RankPool, sync: str) -> None:
    """DDP under no_sync broadcasts buffers at the first forward only, and its parameter averaging never does."""
    assert max(ranks3.run(statistics_apart, sync)) == 0.0


# torchft


def applied_to_others() -> float:
    """One fragment's outer step leaves the other's anchor and momentum alone, whatever gradients lie around."""
    loop = Loop(StreamingDiLoCo(period=4, fragments=2, delay=0)).run(1)
    sync = loop.sync
    assert isinstance(sync, StreamingDiLoCo)
    second = slice(sync._streams[0].fragment.spans[0][1], None)
    before = sync.anchor[second].clone(), sync._momentum[second].clone()
    loop.run(1)
    assert loop.syncs == 1
    return max(apart(sync.anchor[second], before[0]), apart(sync._momentum[second], before[1]))


def test_a_fragments_outer_step_touches_no_other(ranks2: RankPool) -> None:
    """torchft's one outer optimizer also applies the inner gradients of the other fragments."""
    assert ranks2.run(applied_to_others) == [0.0, 0.0]


class Wide(nn.Module):
    """30 MB of parameters: more than one of DDP's buckets, in layers of very different sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 1000), nn.Linear(1000, 3500), nn.Linear(3500, 3)).double()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


def reduced_everything(name: str) -> tuple[float, int]:
    loop = Loop(ALL[name](), model=Wide, optimizer=sgd(lr=1e-4)).run(4)
    return loop.sync.consensus_distance(), loop.topology.world.stats.payload_bytes


@pytest.mark.parametrize("name", ["allreduce", "compressed", "local_sgd", "diloco"])
def test_nothing_is_dropped_where_there_are_several_buckets(ranks2: RankPool, name: str) -> None:
    """torchft's bucketised all-reduce drops tensors when there is more than one bucket."""
    size = sum(parameter.numel() for parameter in Wide().parameters()) * 8
    assert size > 25e6
    times = 1 if name in ("local_sgd", "diloco") else 4
    for distance, payload in ranks2.run(reduced_everything, name):
        assert distance < 1e-12
        assert payload == times * size


def resume_buckets() -> tuple[bool, bool]:
    """Return whether a resume after step 3 ends in the same bits; and (control) one without the residuals."""

    def fresh() -> Loop:
        return Loop(AllReduce(), reducer=PowerSGD(rank=1), model=Wide, optimizer=sgd(lr=1e-4))

    whole = fresh().run(3)
    assert len(whole.sync._gradients._parts) > 1  # type: ignore[attr-defined]
    weights, state = whole.weights, whole.reducer.state_dict()
    expected = whole.run(2).weights
    ended = []
    for residuals in (state, {**state, "parts": []}):
        again = fresh().run(2)  # as Trainer.rehearse: DDP groups its buckets
        again.flat.parameters.copy_(weights)
        again.reducer.load_state_dict(residuals)
        again.step = 3
        ended.append(torch.equal(again.run(2).weights, expected))
    return ended[0], ended[1]


def test_error_feedback_of_several_buckets_survives_a_resume(ranks2: RankPool) -> None:
    """DDP regroups its buckets after the first backward: what is kept by bucket lands on other parameters."""
    assert ranks2.run(resume_buckets) == [(True, False)] * 2


# exo gym


def test_an_argument_that_nobody_takes_is_refused() -> None:
    """exo gym swallows it: the optimizer that was asked for is not the one that runs."""
    with pytest.raises(ConfigError, match=r"sync\.outer_optimizer: unknown key"):
        build("sync", {"name": "DiLoCo", "period": 4, "outer_optimizer": "adam"})
    with pytest.raises(TypeError):
        LocalSGD(period=2, outer_optimizer="adam")  # type: ignore[call-arg]
