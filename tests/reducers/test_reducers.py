"""Laws of lossy reducers: nothing is lost or dropped, equal bits on all ranks, and refusals."""

import math
from dataclasses import replace
from typing import Any

import pieces
import pytest
import torch
from loops import apart, refusal
from rank_pool import RankPool
from reducer_cases import FP32, FP64, LOSSY, MAKE, ROUNDS, SHAPES, SIZE, SIZES, averaged, pool_of, values
from torch import Tensor

from ddp_agent.config.registry import problems
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.reducers import Dense, ErrorFeedback, PowerSGD, Reducer, TopK
from ddp_agent.sync import AllReduce, DiLoCo, ParameterUpdate

# Nothing is lost.


def history(name: str, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    comm = world_comm()
    torch.manual_seed(comm.rank)  # ranks may have drawn different random numbers before
    part = MAKE[name]().for_tensor(SHAPES)
    turns = []
    for turn in range(ROUNDS):
        own = values(turn, comm.rank, dtype)
        result = averaged(part, own, comm)
        assert part.residual is not None
        second = getattr(part, "second", None)
        turns.append(
            {
                "input": own,
                "result": result,
                "residual": part.residual.clone(),
                "second": own[:0] if second is None else second.clone(),
                "unsent": part.unsent(comm),
            }
        )
    return turns


def mean(histories: list[list[dict[str, Tensor]]], turn: int, key: str) -> Tensor:
    return torch.stack([ranks[turn][key] for ranks in histories]).mean(0)


@LOSSY
@SIZES
@pytest.mark.parametrize(("dtype", "tolerance"), [(FP64, 1e-13), (FP32, 2e-5)])
def test_result_and_residuals_are_input_and_residuals_before(
    name: str, size: int, dtype: torch.dtype, tolerance: float, request: pytest.FixtureRequest
) -> None:
    histories = pool_of(size, request).run(history, name, dtype)
    owed = torch.zeros(SIZE, dtype=dtype)
    for turn in range(ROUNDS):
        due = mean(histories, turn, "input") + owed
        owed = mean(histories, turn, "residual")
        seconds = torch.cat([ranks[turn]["second"] for ranks in histories])
        owed = owed + seconds if len(seconds) else owed
        result = histories[0][turn]["result"]
        assert apart(result + owed, due) < tolerance
        assert apart(owed, mean(histories, turn, "unsent")) < tolerance
        assert turn > 0 or apart(result, due) > 1e-3  # control: much is kept back


@LOSSY
@SIZES
@pytest.mark.parametrize("dtype", [FP64, FP32])
def test_all_ranks_hold_the_same_bits(name: str, size: int, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    first, *others = pool_of(size, request).run(history, name, dtype)
    for turn in range(ROUNDS):
        assert all(torch.equal(other[turn]["result"], first[turn]["result"]) for other in others)
        assert not any(torch.equal(other[turn]["residual"], first[turn]["residual"]) for other in others)


def constant(name: str, feedback: bool) -> tuple[float, Tensor]:
    """Return the error of the mean of 200 results for one input, and which numbers were ever sent."""
    comm = world_comm()
    own = values(0, comm.rank)
    part = MAKE[name]().for_tensor(SHAPES)
    results = torch.stack(
        [averaged(part if feedback else MAKE[name]().for_tensor(SHAPES), own, comm) for _ in range(200)]
    )
    return apart(results.mean(0), averaged(Dense(), own, comm)), (results != 0).any(0)


@pytest.mark.exhaustive
@LOSSY
def test_what_is_dropped_comes_later(ranks3: RankPool, name: str) -> None:
    with_feedback, without = ranks3.run(constant, name, True)[0], ranks3.run(constant, name, False)[0]
    assert with_feedback[0] < 0.2 * without[0]  # signs of such numbers owe the most; it falls as 1 / rounds
    if name == "topk":
        assert bool(with_feedback[1].all()) and not bool(without[1].all())  # small numbers would never be sent


# Nothing is dropped.


def against_dense(reducer: ErrorFeedback) -> float:
    """The largest distance from the exact mean, beginning with inputs of full rank, or with zeros."""
    comm = world_comm()
    torch.manual_seed(comm.rank)  # ranks may have drawn different random numbers before
    distances = []
    for turns in ((0, 1, 2), (1, 0, 2)):
        part = reducer.for_tensor(SHAPES)
        inputs = [values(turn, comm.rank) for turn in turns]
        distances += [apart(averaged(part, own, comm), averaged(Dense(), own, comm)) for own in inputs]
    return max(distances)


@SIZES
@pytest.mark.parametrize(
    ("whole", "control"),
    [
        (TopK(ratio=1.0), TopK(ratio=0.9)),
        (PowerSGD(rank=4, min_compression=0.0), PowerSGD(rank=3, min_compression=0.0)),
        (PowerSGD(rank=99, min_compression=0.0), PowerSGD(rank=1, min_compression=0.0)),
        (PowerSGD(rank=1, min_compression=9.0), PowerSGD(rank=1, min_compression=1.0)),
    ],
)
def test_whole_is_dense(
    whole: ErrorFeedback, control: ErrorFeedback, size: int, request: pytest.FixtureRequest
) -> None:
    pool = pool_of(size, request)
    assert max(pool.run(against_dense, whole)) < 1e-12
    assert max(pool.run(against_dense, control)) > 1e-3


def test_without_shapes_a_tensor_is_one_matrix_or_a_vector() -> None:
    matrix = values(0, 0)[:60].view(6, 10)
    assert apart(averaged(PowerSGD(rank=6, min_compression=0), matrix, LocalComm()), matrix) < 1e-12
    assert apart(averaged(PowerSGD(rank=1, min_compression=0), matrix, LocalComm()), matrix) > 1e-3
    assert torch.equal(averaged(PowerSGD(rank=1, min_compression=0), matrix.view(-1), LocalComm()), matrix.view(-1))


def approximate(rounds: int) -> float:
    """Relative error of rank 2 for a matrix whose singular values are 8, 4, 2, 1, …"""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(8, 8, dtype=FP64)).Q for _ in range(2))
    matrix = left @ torch.diag(2.0 ** torch.arange(3, -5, -1, dtype=FP64)) @ right.T
    reducer = PowerSGD(rank=2, min_compression=0)
    for _ in range(rounds):
        found = averaged(reducer, matrix, LocalComm())
        assert reducer.residual is not None
        reducer.residual.zero_()  # the basis alone
    return float((found - matrix).norm() / matrix.norm())


def test_the_basis_gets_better_from_call_to_call() -> None:
    best = math.sqrt(sum(4.0**i for i in range(-4, 2)) / sum(4.0**i for i in range(-4, 4)))
    assert approximate(1) > 1.02 * best
    assert approximate(12) == pytest.approx(best, rel=1e-3)


# What is no number must not become one.


def with_a_hole(name: str, value: float, place: int, hurt: int) -> tuple[bool, bool]:
    comm = world_comm()
    before = averaged(MAKE[name]().for_tensor(SHAPES), values(0, comm.rank), comm)
    tensor = values(0, comm.rank)
    if comm.rank == hurt:
        tensor[place] = value
    after = averaged(MAKE[name]().for_tensor(SHAPES), tensor, comm)
    return bool(before.isfinite().all()), bool(after.isfinite().all())


@LOSSY
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [3, 22, 60])
def test_not_a_number_is_not_hidden(ranks3: RankPool, name: str, value: float, place: int) -> None:
    assert ranks3.run(with_a_hole, name, value, place, 1) == [(True, False)] * 3


# Which is which, and what is refused.


def test_parts_share_the_values_and_nothing_else() -> None:
    reducer = PowerSGD(rank=3, min_compression=0.5)
    one, other = reducer.for_tensor(SHAPES), reducer.for_tensor(SHAPES)
    assert one == other == reducer == PowerSGD(rank=3, min_compression=0.5) != PowerSGD(rank=2, min_compression=0.5)
    averaged(one, values(0, 0), LocalComm())
    assert one.residual is not None and other.residual is None and reducer.residual is None
    assert reducer.parts == [one, other] and one.parts == []
    assert repr(one) == "PowerSGD(rank=3, min_compression=0.5)"
    assert replace(one).residual is None


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_comes_out_once_and_not_for_ever(name: str, bad: float) -> None:
    """fp16 gradients overflow now and then: a residual that kept the infinity would spoil all later steps."""
    reducer = MAKE[name]()
    results = []
    for step in range(4):
        given = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        if step == 1:
            given[2, 3] = bad
        reducer.mean_(given, LocalComm())
        results.append(bool(given.isfinite().all()))
    assert results == [True, False, True, True]


@pytest.mark.parametrize("reducer", [make() for make in pieces.REDUCERS.values()], ids=str)
def test_who_remembers(reducer: Reducer) -> None:
    remembers = reducer.traits.feeds_back
    assert (reducer.traits.remembers, reducer.for_tensor(SHAPES) is reducer) == (remembers, not remembers)
    refused = refusal(AllReduce(), reducer)
    assert (refused is not None) == (remembers and not reducer.traits.works_in_buckets)  # see test_mode_resume
    assert refused is None or ("use sync=compressed" in refused and str(reducer) in refused)
    assert refusal(DiLoCo(period=1), reducer) is refusal(ParameterUpdate(period=1), reducer) is None


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        ({"name": "TopK", "ratio": 0}, "reducer.ratio: found 0, expected a finite number > 0 and <= 1"),
        ({"name": "TopK", "ratio": 1.5}, "reducer.ratio: found 1.5, expected a finite number > 0 and <= 1"),
        ({"name": "TopK"}, "reducer.ratio: missing, expected a finite number > 0 and <= 1"),
        ({"name": "PowerSGD", "rank": 0}, "reducer.rank: found 0, expected an integer >= 1"),
        (
            {"name": "PowerSGD", "min_compression": -1},
            "reducer.min_compression: found -1, expected a finite number >= 0",
        ),
        ({"name": "Int8", "block": 0}, "reducer.block: found 0, expected an integer >= 1"),
        ({"name": "Sign", "block": 8}, "reducer.block: unknown key: Sign has no block; reducer=int8, sparse have it"),
    ],
)
def test_values_out_of_range(node: dict[str, Any], problem: str) -> None:
    assert problems("reducer", node) == [problem]


@pytest.mark.parametrize("name", ["ErrorFeedback", "Quantised", "Reducer"])
def test_what_is_only_a_base_cannot_be_chosen(name: str) -> None:
    assert len(problems("reducer", {"name": name})) == 1


def test_more_numbers_than_int32_can_count_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found a tensor of 2147483648 numbers, expected less than 2\^31"):
        TopK(ratio=0.01).mean_(torch.empty(2**31, device="meta"), LocalComm())
