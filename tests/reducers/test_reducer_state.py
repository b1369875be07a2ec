"""A reducer's state, saved after any round and loaded into a fresh one, twice in a row."""

import copy
import io
from typing import Any

import pytest
import torch
from loops import apart
from rank_pool import RankPool
from reducer_cases import FP64, LOSSY, MAKE, ROUNDS, SHAPES, SIZE, SIZES, averaged, pool_of, values
from torch import Tensor

from ddp_agent.distributed.comm import Comm, LocalComm
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.reducers import Dense, ErrorFeedback, Int8, PowerSGD, Reducer, Sign, TopK

# State: saved after any round, loaded into a reducer that has done nothing yet, twice in a row.


def stored(reducer: Reducer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(reducer.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def tensors_of(reducer: ErrorFeedback) -> list[ErrorFeedback]:
    """Two tensors a round: the second one is half as long."""
    return [reducer.for_tensor(SHAPES), reducer.for_tensor(SHAPES[:3])]


def a_round(parts: list[ErrorFeedback], turn: int, comm: Comm) -> list[Tensor]:
    own = values(turn, comm.rank)
    return [averaged(part, own[:size], comm) for part, size in zip(parts, (SIZE, 39), strict=True)]


def resume(name: str, loses: str) -> list[int]:
    """The rounds after which a resume, and its resume, did not go on with the same bits."""
    comm = world_comm()
    whole = MAKE[name]()
    parts = tensors_of(whole)
    states, results = [stored(whole)], []
    for turn in range(ROUNDS):
        results.append(a_round(parts, turn, comm))
        states.append(stored(whole))
    wrong = []
    for saved in range(ROUNDS):
        state, found = states[saved], []
        if loses:
            state["parts"][1] = MAKE[name]().for_tensor(SHAPES).state_dict() | (
                {} if loses == "all" else {key: v for key, v in state["parts"][1].items() if key != loses}
            )
        for turn in range(saved, ROUNDS):
            if turn < saved + 2:
                fresh = MAKE[name]()
                parts = tensors_of(fresh)
                fresh.load_state_dict(state)
            found.append(a_round(parts, turn, comm))
            state = stored(fresh)
        same = [all(map(torch.equal, one, other)) for one, other in zip(found, results[saved:], strict=True)]
        wrong += [] if all(same) else [saved]
    return wrong


@LOSSY
@SIZES
def test_resume_is_bitwise_after_every_round(name: str, size: int, request: pytest.FixtureRequest) -> None:
    assert pool_of(size, request).run(resume, name, "") == [[]] * size


@pytest.mark.parametrize(
    ("name", "loses"),
    [*((name, "residual") for name in MAKE), ("int8", "second"), ("sign", "second"), ("powersgd", "basis")],
)
def test_control_a_lost_part_of_the_state_is_seen(ranks2: RankPool, name: str, loses: str) -> None:
    for wrong in ranks2.run(resume, name, loses):
        assert {1, 3, 4, 5} <= set(wrong)


def shared(name: str) -> list[bool]:
    """Return whether a saved state changed while its reducer, and one that loaded it, continued; then theirs."""
    comm, reducer, other = world_comm(), MAKE[name](), MAKE[name]()
    parts, other_parts = tensors_of(reducer), tensors_of(other)
    a_round(parts, 0, comm)
    state = reducer.state_dict()
    before = copy.deepcopy(state)
    other.load_state_dict(state)
    a_round(parts, 2, comm)
    a_round(other_parts, 2, comm)
    saved, kept, now = state["parts"][0], before["parts"][0], parts[0].state_dict()
    keys = parts[0].kept
    return [all(torch.equal(saved[key], kept[key]) for key in keys), any(torch.equal(saved[k], now[k]) for k in keys)]


@LOSSY
def test_a_saved_state_is_nobody_elses(ranks2: RankPool, name: str) -> None:
    assert [kept for kept, _ in ranks2.run(shared, name)] == [True, True]
    assert ranks2.run(shared, name)[0][1] is False  # control: there was something to change


@LOSSY
def test_a_foreign_state_is_refused(name: str) -> None:
    reducer = MAKE[name]()
    parts = tensors_of(reducer)
    a_round(parts, 0, LocalComm())
    state = reducer.state_dict()
    one_more = MAKE[name]()
    for part in (*parts, *parts):
        assert part.shapes is not None
        one_more.for_tensor(part.shapes)
    swapped = {**state, "parts": state["parts"][::-1]}
    fresh = MAKE[name]()
    tensors_of(fresh)
    for target in (reducer, fresh):
        for foreign in (
            {},
            {"nonsense": 1},
            {**state, "more": 1},
            one_more.state_dict(),
            Dense().state_dict(),
            swapped,
        ):
            with pytest.raises(ValueError, match="expected"):
                target.load_state_dict(foreign)
        target.load_state_dict(state)


def test_a_state_of_another_kind_is_refused() -> None:
    saved = averaged_once(TopK(ratio=0.5)).state_dict()
    for other in (Int8(), PowerSGD(), Sign()):
        with pytest.raises(ValueError, match=r"found a state of \['parts', 'residual'\], expected"):
            other.load_state_dict(saved)
    with pytest.raises(ValueError, match="Dense has no state"):
        Dense().load_state_dict(saved)


def averaged_once(reducer: ErrorFeedback) -> ErrorFeedback:
    averaged(reducer, values(0, 0), LocalComm())
    return reducer


def second_of_other_ranks(saved: dict[str, Any]) -> str:
    reducer = Int8(block=8)
    reducer.load_state_dict(saved)
    try:
        averaged(reducer, values(0, 0), world_comm())
    except ValueError as error:
        return str(error)
    return ""


def test_a_state_of_another_number_of_ranks_is_refused(ranks2: RankPool) -> None:
    saved = averaged_once(Int8(block=8)).state_dict()
    messages = ranks2.run(second_of_other_ranks, saved)
    assert "found 61 numbers for the second residual (of this rank's share), expected 32" in messages[0]
    assert "expected 29" in messages[1]


@LOSSY
def test_another_size_is_refused(name: str) -> None:
    reducer = averaged_once(MAKE[name]())
    with pytest.raises(ValueError, match="found 60 numbers for the tensor, expected 61"):
        averaged(reducer, torch.zeros(60, dtype=FP64), LocalComm())
    with pytest.raises(ValueError, match="found 60 numbers for the tensor, expected 61"):
        averaged(MAKE[name]().for_tensor(SHAPES), torch.zeros(60, dtype=FP64), LocalComm())
    never_started = MAKE[name]()
    never_started.load_state_dict(reducer.state_dict())
    with pytest.raises(ValueError, match="found 61 numbers for the residual, expected 60"):
        averaged(never_started, torch.zeros(60, dtype=FP64), LocalComm())


# Alone.


def alone(name: str, in_a_group: bool) -> list[Tensor]:
    comm = world_comm() if in_a_group else LocalComm()
    parts = tensors_of(MAKE[name]())
    return [tensor for turn in range(3) for tensor in a_round(parts, turn, comm)]


@LOSSY
def test_one_rank_needs_no_process_group(ranks1: RankPool, name: str) -> None:
    [in_a_group], [without] = ranks1.run(alone, name, True), ranks1.run(alone, name, False)
    assert all(map(torch.equal, in_a_group, without))
    assert apart(without[0], values(0, 0)) > 1e-3  # it loses what it loses
