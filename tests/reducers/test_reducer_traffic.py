"""Counted bytes of a reducer equal its formula."""

import math

import pieces
import pytest
import torch
from rank_pool import RankPool
from reducer_cases import FP32, FP64, MAKE, SHAPES, SIZE, SIZES, averaged, pool_of, values
from wire_totals import total_wire_bytes

from ddp_agent.distributed.ledger import CommStats
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.traffic import Collective, total_bytes
from ddp_agent.reducers import Dense, Int8, PowerSGD, Reducer, Sign, TopK


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
        assert stats.payload_bytes == total_bytes(stated)
        assert stats.calls == sum(each.calls for each in stated)
        assert stats.wire_bytes == pytest.approx(total_wire_bytes(stated), abs=stats.calls)


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
