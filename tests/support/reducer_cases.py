"""Inputs and lossy reducers for their laws."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pieces
import pytest
import torch
from rank_pool import RankPool
from torch import Tensor

from ddp_agent.distributed.comm import Comm
from ddp_agent.reducers import Reducer

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
