"""Laws of lossy reducers: nothing is lost, equal bits on all ranks, bytes by a formula, a whole state."""

import copy
import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pieces
import pytest
import torch
from loops import apart, refusal
from rank_pool import RankPool
from torch import Tensor

from ddp_agent.config.registry import problems
from ddp_agent.distributed.comm import Comm, CommStats, LocalComm
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.traffic import Collective
from ddp_agent.reducers import Dense, ErrorFeedback, Int8, PowerSGD, Reducer, Sign, TopK, topk
from ddp_agent.reducers.common import quantised
from ddp_agent.sync import AllReduce, DiLoCo, ParameterUpdate

SHAPES = [torch.Size(shape) for shape in ((5, 4), (7,), (3, 2, 2), (2,), (4, 5))]
SIZE = 61  # a prime: neither blocks nor ranks divide it
ROUNDS = 6
FP64, FP32 = torch.float64, torch.float32

MORE = {"powersgd": {"rank": 2}}
MAKE: dict[str, Callable[[], Any]] = {
    name: partial(make, **MORE.get(name, {})) for name, make in pieces.REDUCERS.items() if make().traits.feeds_back
}
LOSSY = pytest.mark.parametrize("name", MAKE)
SIZES = pytest.mark.parametrize("size", [2, 3])


def pool_of(size: int, request: pytest.FixtureRequest) -> RankPool:
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    return pool


def values(turn: int, rank: int, dtype: torch.dtype = FP64) -> Tensor:
    """Return inputs of very different magnitudes; those of the second turn are all zeros."""
    generator = torch.Generator().manual_seed(100 * turn + rank)
    return torch.randn(SIZE, generator=generator, dtype=FP64).pow(3).mul(turn != 1).to(dtype)


def averaged(reducer: Reducer, tensor: Tensor, comm: Comm) -> Tensor:
    tensor = tensor.clone()
    reducer.mean_(tensor, comm)
    return tensor


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


# Codes.


def blocks_of(dtype: torch.dtype) -> Tensor:
    """Blocks of eight: ordinary, huge, tiny, zeros, subnormal, one large number among small ones."""
    torch.manual_seed(0)
    scales = torch.tensor([1.0, 1e30, 1e-30, 0.0, 1e-40, 1.0], dtype=FP64)
    blocks = torch.randn(6, 8, dtype=FP64) * scales.unsqueeze(1)
    blocks[5, 3] = 1000
    return blocks.to(dtype)


@pytest.mark.parametrize("dtype", [FP64, FP32])
def test_int8_is_wrong_by_half_a_step_at_most(dtype: torch.dtype) -> None:
    blocks = blocks_of(dtype)
    reducer = Int8(block=8)
    result = averaged(reducer, blocks.view(-1), LocalComm()).view_as(blocks)
    assert reducer.residual is not None
    error, steps = reducer.residual.view_as(blocks).abs(), blocks.abs().amax(1, keepdim=True) / 127
    useful = torch.tensor([0, 1, 2, 5])  # a subnormal scale would not be worth its name: the block is sent later
    assert bool((error[useful] <= 0.5000001 * steps[useful]).all())
    assert bool((error[useful] > 0.1 * steps[useful]).any(1).all())  # control
    assert torch.equal(result[3:5], torch.zeros(2, 8, dtype=dtype))
    assert torch.equal(error[4], blocks[4].abs())


def signs(majority: bool) -> tuple[Tensor, Tensor]:
    """Three blocks, the last with three numbers, of magnitudes 1, 0 and 5. The last rank may disagree."""
    comm = world_comm()
    torch.manual_seed(0)
    tensor = torch.where(torch.rand(2 * 1024 + 3) < 0.5, -1.0, 1.0)
    tensor[1024:2048] = 0
    tensor[2048:] *= 5
    dissent = -1.0 if majority and comm.rank == comm.size - 1 else 1.0
    return tensor, averaged(Sign(), dissent * tensor, comm)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_signs_that_agree_arrive_with_the_magnitude_of_their_block(size: int, request: pytest.FixtureRequest) -> None:
    for tensor, result in pool_of(size, request).run(signs, False):
        torch.testing.assert_close(result, tensor, rtol=1e-6, atol=0)


def test_signs_are_a_majority(ranks3: RankPool) -> None:
    for tensor, result in ranks3.run(signs, True):
        torch.testing.assert_close(result, tensor / 3, rtol=1e-5, atol=0)


def many(kind: str) -> Tensor:
    """Enough for the selection by a sample: ordinary, one with NaN, and ones that the sample misjudges."""
    size = 2_000_003
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(0)).abs()
    if kind == "nan":
        tensor[[5, 77_777]] = math.nan
    elif kind == "equal":
        tensor.fill_(0.5)
    elif kind == "sample too large":
        tensor[:: size // topk.SAMPLE] += 100
    elif kind == "sample too small":
        tensor[:: size // topk.SAMPLE] = 0
    return tensor


@pytest.mark.parametrize("kind", ["ordinary", "nan", "equal", "sample too large", "sample too small"])
@pytest.mark.parametrize("count", [1, 200, 20_000, 300_000, 2_000_003])
def test_the_largest_of_many_are_the_largest(kind: str, count: int) -> None:
    magnitudes = many(kind)
    found = topk._largest(magnitudes, count)
    assert len(found.unique()) == count
    expected = magnitudes.topk(count).values
    torch.testing.assert_close(magnitudes[found].sort(descending=True).values, expected, rtol=0, atol=0, equal_nan=True)


def test_codes_in_pieces_are_codes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (partial(Int8, block=8), partial(Int8, block=100), Sign):
        tensor = torch.randn(5003, generator=torch.Generator().manual_seed(0))
        whole = averaged(make(), tensor, LocalComm())
        with monkeypatch.context() as patch:
            patch.setattr(quantised, "PIECE", 1100)
            assert torch.equal(averaged(make(), tensor, LocalComm()), whole)


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


# Bytes.


def traffic(reducer: Reducer, dtype: torch.dtype) -> tuple[CommStats, list[Collective]]:
    comm = world_comm()
    own = values(0, comm.rank, dtype)  # of which none is zero
    averaged(reducer.for_tensor(SHAPES), own, comm)
    return comm.stats, reducer.traffic(SHAPES, dtype.itemsize, comm.size)


@pytest.mark.parametrize("name", [*pieces.REDUCERS, "powersgd, by default"])
@pytest.mark.parametrize("dtype", [FP64, FP32, torch.float16])
@SIZES
def test_counted_bytes_are_what_the_reducer_states(
    name: str, dtype: torch.dtype, size: int, request: pytest.FixtureRequest
) -> None:
    reducer = pieces.REDUCERS.get(name, PowerSGD)()
    for stats, stated in pool_of(size, request).run(traffic, reducer, dtype):
        assert stats.payload_bytes == sum(each.total_bytes for each in stated)
        assert stats.calls == sum(each.calls for each in stated)
        assert stats.wire_bytes == pytest.approx(sum(each.wire_bytes for each in stated), abs=stats.calls)


@pytest.mark.parametrize("name", pieces.REDUCERS)
def test_only_the_first_collective_begins_at_once(ranks2: RankPool, name: str) -> None:
    """So only that one may be hidden behind something."""
    for calls_at_start, stated in ranks2.run(calls_of_start, pieces.REDUCERS[name]()):
        assert calls_at_start == 1 <= stated


def calls_of_start(reducer: Reducer) -> tuple[int, int]:
    comm = world_comm()
    finish = reducer.for_tensor(SHAPES).start(values(0, comm.rank), comm)
    calls = comm.stats.calls
    finish()
    return calls, len(reducer.traffic(SHAPES, FP64.itemsize, comm.size))


def expected_traffic(name: str, ranks: int, item: int) -> tuple[float, float, int]:
    """Payload, wire, calls. An all-to-all sends all packets but one's own, an all-gather one packet to each other."""
    if name == "topk":
        packet = math.ceil(0.3 * SIZE) * (item + 4)
        return packet, (ranks - 1) * packet, 1
    if name == "powersgd":
        numbers = 7 + 2 + 2 * (5 + 4) + 2 * (3 + 4) + 2 * (4 + 5)
        return numbers * item, 2 * (ranks - 1) / ranks * numbers * item, 2
    if name == "powersgd, by default":  # 3 x 4 is no more than 2 (3 + 4), so nothing would be gained
        numbers = 7 + 2 + 2 * (5 + 4) + 3 * 4 + 2 * (4 + 5)
        return numbers * item, 2 * (ranks - 1) / ranks * numbers * item, 2
    block, block_bytes = {"int8": (8, 8 + 4), "sign": (1024, 1024 // 8 + 4)}[name]
    packet = math.ceil(SIZE / (block * ranks)) * block_bytes
    return (ranks + 1) * packet, 2 * (ranks - 1) * packet, 2


@pytest.mark.parametrize("name", ["int8", "topk", "sign", "powersgd", "powersgd, by default"])
@pytest.mark.parametrize("dtype", [FP64, FP32])
@SIZES
def test_counted_bytes_are_those_worked_out_by_hand(
    name: str, dtype: torch.dtype, size: int, request: pytest.FixtureRequest
) -> None:
    reducer = MAKE.get(name, PowerSGD)()
    payload, wire, calls = expected_traffic(name, size, dtype.itemsize)
    for stats, _ in pool_of(size, request).run(traffic, reducer, dtype):
        assert (stats.payload_bytes, stats.calls) == (payload, calls)
        assert stats.wire_bytes == pytest.approx(wire, abs=calls)


def wire_of_many_numbers(reducer: Reducer) -> int:
    comm = world_comm()
    averaged(reducer, torch.randn(100_000), comm)
    return comm.stats.wire_bytes


@pytest.mark.parametrize(("reducer", "share"), [(Int8(), 0.27), (TopK(ratio=0.01), 0.025), (Sign(), 0.035)])
def test_share_of_the_dense_bytes(ranks2: RankPool, reducer: Reducer, share: float) -> None:
    dense, lossy = (ranks2.run(wire_of_many_numbers, each)[0] for each in (Dense(), reducer))
    assert 0.5 * share < lossy / dense <= share


def wire_of_resnet18(reducer: Reducer) -> int:
    from torchvision import models

    with torch.device("meta"):
        shapes = [parameter.shape for parameter in models.resnet18().parameters()]
    comm = world_comm()
    averaged(reducer.for_tensor(shapes), torch.randn(sum(shape.numel() for shape in shapes)), comm)
    return comm.stats.wire_bytes


def test_share_of_a_model_of_matrices(ranks2: RankPool) -> None:
    dense, low = (ranks2.run(wire_of_resnet18, each)[0] for each in (Dense(), PowerSGD(rank=2)))
    assert 0.005 < low / dense <= 0.02


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
    assert (refused is not None) == (remembers and not reducer.traits.works_in_buckets)  # see test_sync, resume
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
        ({"name": "Sign", "block": 8}, "reducer.block: unknown key (known: none)"),
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
