"""Parameters that only some ranks train: changes in every mode and with every reducer, and the ranks of a mean."""

from typing import Any

import pytest
import torch
from heads import HEADS, MODES, PARTED, SHARED, Heads, Owners, allowed, distance, same_batch
from loops import apart, sgd
from mode_cases import ALL, TOLERANCE, TRAITS, has_replicas
from pieces import REDUCERS
from rank_pool import RankPool

from ddp_agent.distributed.consistency import require_replicated
from ddp_agent.errors import DivergedError
from ddp_agent.models.common.multi_task import MultiTask
from ddp_agent.sync import Independent, LocalSGD, ParameterUpdate
from ddp_agent.sync.engine.internals import internals

# Who changes what, in every mode and with every reducer.


def changes(mode: str) -> list[str]:
    """Return the wrong results, each with its reducer."""
    wrong = []
    for reducer in allowed(mode):
        optimizer = sgd(momentum=0.9, weight_decay=0.1)
        loop = Heads(ALL[mode](), optimizer=optimizer, reducer=REDUCERS[reducer]())
        rank, before = loop.topology.world.rank, loop.state()
        loop.run(5)
        own = loop.state()
        with loop.sync.eval_weights():
            seen = loop.of_all(loop.state())
        if distance(own, loop.state()):
            wrong.append(f"{reducer}: evaluation has changed something")
        if not all(torch.equal(row, rows[0]) for rows in seen.values() for row in rows):
            wrong.append(f"{reducer}: ranks evaluate different models")
        after = loop.run(4).flush().state()
        if torch.equal(before["trunk"], after["trunk"]):
            wrong.append(f"{reducer}: the trunk is as it was")
        for head, owners in PARTED.items():
            if torch.equal(before[head], after[head]) == (rank in owners):
                wrong.append(f"{reducer}: head {head}")
            if all(torch.equal(before[head], row) for row in seen[head]):
                wrong.append(f"{reducer}: evaluation does not see what became of {head}")
    return wrong


@MODES
def test_a_head_changes_on_its_owners_and_a_trunk_everywhere(ranks3: RankPool, mode: str) -> None:
    assert ranks3.run(changes, mode) == [[]] * 3


def control_changes(mode: str) -> dict[str, bool]:
    loop = Heads(ALL[mode](), None, optimizer=sgd(momentum=0.9))
    before, after = loop.state(), loop.run(9).flush().state()
    return {head: torch.equal(before[head], after[head]) for head in HEADS}


def test_control_replicated_heads_change_on_every_rank(ranks3: RankPool) -> None:
    assert ranks3.run(control_changes, "local_sgd") == [dict.fromkeys(HEADS, False)] * 3


def called_by_all(weight_decay: float) -> list[str]:
    """Every rank calls every head, so all have gradients, be they zero; which of those of others have changed?"""
    loop = Heads(LocalSGD(period=2), optimizer=sgd(momentum=0.9, weight_decay=weight_decay))
    assert isinstance(loop.module, MultiTask)
    loop.module.trained = dict.fromkeys(HEADS, 1.0)
    loop.columns, before = list(range(len(HEADS))), loop.state(buffers=False)
    after = loop.run(3).state(buffers=False)
    return [head for head in HEADS if not torch.equal(before[head], after[head])]


def test_a_head_that_is_called_and_not_owned_stays_as_it_was(ranks3: RankPool) -> None:
    assert ranks3.run(called_by_all, 0.1) == [["a"], ["b"], ["a", "c"]]


def flipped_head(mode: str) -> str:
    """Return the error after one bit of a head of ranks 0 and 2 flipped on rank 2. Before, all were equal."""
    loop = Heads(ALL[mode](), optimizer=sgd(momentum=0.9)).run(9).flush()
    world, parts = loop.topology.world, internals(loop.sync).replicated(loop.step)
    require_replicated(parts, world, loop.step)
    head = parts[1 + HEADS.index("a")].tensor
    assert (head is None) == (world.rank == 1)
    if head is not None and world.rank == 2:
        head.view(torch.int64)[1] ^= 1
    with pytest.raises(DivergedError) as raised:
        require_replicated(parts, world, loop.step)
    return str(raised.value)


@pytest.mark.parametrize("mode", [mode for mode, traits in TRAITS.items() if has_replicas(traits)])
def test_a_head_that_its_owners_do_not_have_alike_is_named_on_every_rank(ranks3: RankPool, mode: str) -> None:
    (said,) = set(ranks3.run(flipped_head, mode))
    assert said.startswith("after step 9 the parameters of heads.a that its owners share are not the same on rank 2 as")


def measure_what_stays(reducer: str) -> float:
    """Return the distance of rank 1's own head from its value without synchronisation, after one step."""
    loops = Heads(Independent()), Heads(ParameterUpdate(period=1, combine="mean"), reducer=REDUCERS[reducer]())
    return apart(*(loop.run(1).state()["b"] for loop in loops))


@pytest.mark.parametrize("reducer", ["int8", "topk", "sign", "powersgd"])
def test_what_does_not_travel_loses_nothing(ranks3: RankPool, reducer: str) -> None:
    assert ranks3.run(measure_what_stays, reducer)[1] < TOLERANCE


# Whom a mean is over.


def measure_means() -> dict[str, float]:
    """One step and its average, against the steps of ranks alone and the means written out."""
    alone = Heads(Independent()).run(1)
    expected = alone.over_owners(alone.state(buffers=False))
    loop = Heads(LocalSGD(period=1)).run(1)
    rank, found = loop.topology.world.rank, loop.state(buffers=False)
    mine = {part for part, owners in PARTED.items() if rank in owners} | {"trunk"}
    with loop.sync.eval_weights():
        evaluated = loop.state(buffers=False)
    trained = alone.of_all(alone.state(buffers=False))
    # What torch's averager does: of all that has a gradient, the first with everybody's first, and so on.
    by_place = torch.stack([trained[head][owners[0]] for head, owners in PARTED.items()]).mean(0)
    return {
        "own": distance({part: expected[part] for part in mine}, found),
        "evaluated": distance(expected, evaluated),
        "control by place": apart(by_place, expected["b"]),
        "control over all": apart(trained["b"].mean(0), expected["b"]),
    }


def test_heads_of_one_shape_are_never_mixed(ranks3: RankPool) -> None:
    for distances in ranks3.run(measure_means):
        for name, found in distances.items():
            assert (found > 1e-3) if name.startswith("control") else (found < TOLERANCE), name


def measure_same_data(mode: str, reducer: str, owners: Owners, amplified: bool) -> float:
    """Every rank sees the same samples, so that it does not matter for a head how many ranks train it."""
    options: dict[str, Any] = {"optimizer": sgd(momentum=0.9, weight_decay=0.01), "batches": same_batch}
    all_heads = Heads(ALL[mode](), None, **options).run(6).flush()
    parted = Heads(ALL[mode](), owners, amplified=amplified, reducer=REDUCERS[reducer](), **options).run(6).flush()
    with parted.sync.eval_weights():
        return distance(all_heads.state(), parted.state())


@pytest.mark.parametrize("mode", ["allreduce", "allreduce in buckets", "compressed"])
def test_parted_gradients_are_those_of_all_tasks_together(ranks3: RankPool, mode: str) -> None:
    for owners in (PARTED, {"a": (0,), "b": (0, 1), "c": (0, 1, 2)}, {"a": (0,), "b": (1,), "c": (2,)}):
        assert max(ranks3.run(measure_same_data, mode, "dense", owners, True)) < TOLERANCE
    assert max(ranks3.run(measure_same_data, mode, "dense", PARTED, False)) > 1e-3  # control


def measure_all_own_all(mode: str) -> float:
    options: dict[str, Any] = {"optimizer": sgd(momentum=0.9)}
    one, other = (Heads(ALL[mode](), owners, **options).run(9).flush() for owners in (None, SHARED))
    return distance(one.state(), other.state())


# Fragments of a trunk are others than those of a whole model.
@pytest.mark.parametrize("mode", [mode for mode, traits in TRAITS.items() if traits.identical != "after_flush"])
def test_where_all_own_all_it_is_the_mode_itself(ranks3: RankPool, mode: str) -> None:
    assert max(ranks3.run(measure_all_own_all, mode)) < TOLERANCE
