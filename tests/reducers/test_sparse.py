"""The sparse reducer: what it gives is what `dense` gives, and only what somebody touched travels."""

import math
from typing import Any

import pytest
import torch
from loops import DTYPE, ROWS, Loop, refusal
from mode_cases import ALL, TRAITS
from rank_pool import RankPool
from torch import Tensor, nn

from ddp_agent.config.registry import problems
from ddp_agent.distributed.comm import Comm, LocalComm
from ddp_agent.distributed.ledger import CommStats
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.reducers import Dense, Reducer, Sparse
from ddp_agent.sync import Gossip, Hierarchical, LocalSGD, PostLocalSGD

BLOCK = 4
BLOCKS, REST = 12, 3  # of the tensor below
SIZES = pytest.mark.parametrize("size", [2, 3])


def touched(rank: int, shared: bool) -> list[int]:
    """The blocks that a rank has something in: two of its own, and two that all have."""
    return [3 * rank, 3 * rank + 2, *((1, 11) if shared else ())]


def values(rank: int, dtype: torch.dtype, shared: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    tensor = torch.zeros(BLOCKS * BLOCK + REST, dtype=torch.float64)
    blocks = tensor[: BLOCKS * BLOCK].view(BLOCKS, BLOCK)
    for block in touched(rank, shared):
        blocks[block, block % BLOCK] = torch.randn(1, generator=generator, dtype=torch.float64)  # one number is enough
    tensor[-1] = 1 + rank
    return tensor.to(dtype)


def averaged(reducer: Reducer, tensor: Tensor, comm: Comm) -> Tensor:
    tensor = tensor.clone()
    reducer.for_tensor([tensor.shape]).mean_(tensor, comm)
    return tensor


def both(dtype: torch.dtype, shared: bool, block: int) -> tuple[Tensor, Tensor]:
    comm = world_comm()
    own = values(comm.rank, dtype, shared)
    return averaged(Sparse(block=block), own, comm), averaged(Dense(), own, comm)


@SIZES
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, BLOCK, 7, 999])
def test_it_is_the_dense_mean(
    size: int, shared: bool, dtype: torch.dtype, block: int, request: pytest.FixtureRequest
) -> None:
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    results = pool.run(both, dtype, shared, block)
    for sparse, dense in results:
        assert torch.equal(sparse, results[0][0])
        if size == 2 or not shared:  # sums of two, or of one and zeros, have no order
            assert torch.equal(sparse[:-1], dense[:-1])
        # Of three numbers in bf16, another order of adding is worth a step of the largest, whatever the sum.
        torch.testing.assert_close(sparse, dense, rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert results[0][0].count_nonzero() > 2 * size  # control: there was something to average


def odd_numbers() -> list[Tensor]:
    """A block with NaN, one with infinity, and one with zeros of different signs."""
    comm = world_comm()
    tensor = torch.zeros(4 * BLOCK)
    if comm.rank == 1:
        tensor[0], tensor[BLOCK] = math.nan, math.inf
        tensor[2 * BLOCK :] = -0.0
    return [averaged(reducer, tensor, comm) for reducer in (Sparse(block=BLOCK), Dense())]


def test_what_is_no_number_is_not_hidden_and_zeros_have_one_sign(ranks2: RankPool) -> None:
    (one, dense), (other, _) = ranks2.run(odd_numbers)
    torch.testing.assert_close(one, dense, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(one.view(torch.int32), other.view(torch.int32))


def traffic(dtype: torch.dtype, filled: str) -> CommStats:
    comm = world_comm()
    own = values(comm.rank, dtype)
    if filled == "nothing":
        own.zero_()
    elif filled == "everything":
        own.fill_(1)
    averaged(Sparse(block=BLOCK), own, comm)
    return comm.stats


@SIZES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("filled", ["some", "nothing", "everything"])
def test_counted_bytes(size: int, dtype: torch.dtype, filled: str, request: pytest.FixtureRequest) -> None:
    """A byte a block, then the blocks that anybody touched, and what is no whole block."""
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    union = set().union(*(touched(rank, True) for rank in range(size)))
    travelling = {"some": len(union), "nothing": 0, "everything": BLOCKS}[filled]
    payload = BLOCKS + (travelling * BLOCK + REST) * dtype.itemsize
    for stats in pool.run(traffic, dtype, filled):
        assert (stats.payload_bytes, stats.calls) == (payload, 2)
        assert stats.wire_bytes == pytest.approx(2 * (size - 1) / size * payload, abs=2)


def test_one_rank_needs_no_process_group() -> None:
    own = values(0, torch.float64)
    assert torch.equal(averaged(Sparse(block=BLOCK), own, LocalComm()), own)


# In training: every mode that takes it, with a table of which each rank touches its own rows.

WORDS, WIDTH = 60, BLOCK


def with_table() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3)).to(DTYPE)


def words(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(10, (ROWS,), generator=generator) + 10 * rank, torch.ones(ROWS, 3, dtype=DTYPE)


def trained(mode: str, reducer: Reducer) -> tuple[Tensor, int]:
    loop = Loop(ALL[mode](), reducer=reducer, model=with_table, batches=words).run(10)
    return loop.flush().weights, loop.topology.world.stats.payload_bytes


TAKING = [
    mode
    for mode, make in ALL.items()
    if TRAITS[mode].sends != "nothing" and refusal(make(), Sparse(block=BLOCK)) is None
]


@pytest.mark.parametrize("mode", TAKING)
def test_training_ends_in_the_same_bits_for_fewer_bytes(ranks2: RankPool, mode: str) -> None:
    sparse, dense = ranks2.run(trained, mode, Sparse(block=BLOCK)), ranks2.run(trained, mode, Dense())
    for (weights, sent), (expected, sent_by_dense) in zip(sparse, dense, strict=True):
        assert torch.equal(weights, expected)
        assert sent < 0.6 * sent_by_dense  # 20 rows of 60 are ever touched


def test_who_takes_it() -> None:
    assert {
        *("allreduce", "allreduce in buckets", "compressed"),
        *("parameter_update", "diloco", "slowmo", "streaming_diloco", "easgd"),
    } <= set(TAKING)
    assert not {"local_sgd", "post_local_sgd", "hierarchical", "gossip", "independent"} & set(TAKING)


@pytest.mark.parametrize(
    "sync", [LocalSGD(period=2), PostLocalSGD(switch_step=1, period=2), Hierarchical(global_period=2)], ids=repr
)
def test_raw_parameters_are_refused_with_what_to_do(sync: Any) -> None:
    refused = refusal(sync, Sparse(block=BLOCK))
    assert refused is not None and "\n" not in refused
    assert "which are never zero" in refused and "sync=parameter_update sync.combine=mean" in refused
    assert refusal(sync, Dense()) is None
    assert refusal(Gossip(period=1), Sparse(block=BLOCK)) is not None


def test_values_out_of_range() -> None:
    found = problems("reducer", {"name": "Sparse", "block": 0})
    assert found == ["reducer.block: found 0, expected an integer >= 1"]
    assert Sparse(block=2).state_dict() == {}
