"""Codes of quantising and sparsifying reducers."""

import math
from functools import partial

import pytest
import torch
from rank_pool import RankPool
from reducer_cases import FP32, FP64, averaged, pool_of
from torch import Tensor

from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.reducers import Int8, Sign, topk
from ddp_agent.reducers.common import quantised


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
