"""allreduce through a reducer is DDP with torch's own communication hook for the same compression."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from loops import Loop, apart, random_batch, sgd
from rank_pool import RankPool
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from ddp_agent.distributed.c10d import GradBucket
from ddp_agent.reducers import Cast, Dense, PowerSGD, Reducer
from ddp_agent.sync import AllReduce

Hook = Callable[[Any, GradBucket], Future[Tensor]]

SIZES = pytest.mark.parametrize("size", [2, 3])
START = 2  # torch's PowerSGD may not begin sooner


def net(buckets: int, dtype: torch.dtype) -> nn.Module:
    """Matrices of three shapes, for DDP in one bucket or in several."""
    torch.manual_seed(0)
    first, second = (30, 40) if buckets == 1 else (300, 1000)
    layers = nn.Sequential(nn.Linear(5, first), nn.Tanh(), nn.Linear(first, second), nn.Tanh(), nn.Linear(second, 3))
    return layers.to(dtype)


def batch(dtype: torch.dtype, step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return large gradients, most of which fp16 holds with all their bits."""
    inputs, target = random_batch(step, rank)
    return inputs.to(dtype), 1000 * target.to(dtype)


OPTIMIZER = sgd(lr=1e-4)


class Theirs:
    """The loop that one would write around torch's hook."""

    def __init__(self, hook: Hook, state: Any = None, *, buckets: int = 2, dtype: torch.dtype = torch.float32) -> None:
        self.ddp = DistributedDataParallel(net(buckets, dtype))

        # By a name of ours: a build without CUDA refuses torch's hook for bf16, which works all the same.
        def called(_: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            return hook(state, bucket)

        self.ddp.register_comm_hook(None, called)
        self.optimizer = OPTIMIZER(self.ddp.parameters())
        self.dtype, self.step = dtype, 0

    def run(self, steps: int) -> "Theirs":
        for _ in range(steps):
            self.step += 1
            inputs, target = batch(self.dtype, self.step, torch.distributed.get_rank())
            nn.functional.mse_loss(self.ddp(inputs), target).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    @property
    def weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.ddp.parameters()])


def ours(reducer: Reducer, *, buckets: int = 2, dtype: torch.dtype = torch.float32) -> Loop:
    model, batches = partial(net, buckets, dtype), partial(batch, dtype)
    loop = Loop(AllReduce(), reducer=reducer, model=model, batches=batches, optimizer=OPTIMIZER)
    assert isinstance(loop.model, DistributedDataParallel)
    return loop


# torch casts and then divides, here it is the other way round: the same bits if K is a power of two, but for numbers so
# small that fp16 has few bits for them.

NARROW: dict[str, Hook] = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


def measure_cast(name: Literal["bf16", "fp16"]) -> tuple[float, float]:
    """Return the distance from torch's hook after six steps, and of that hook from an exact mean."""
    theirs = Theirs(NARROW[name]).run(6).weights
    exact = Theirs(allreduce_hook).run(6).weights
    return apart(ours(Cast(dtype=name)).run(6).weights, theirs), apart(exact, theirs)


@SIZES
@pytest.mark.parametrize("name", NARROW)
def test_casts_are_torchs_hooks(name: str, size: int, request: pytest.FixtureRequest) -> None:
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    for distance, lost in pool.run(measure_cast, name):
        assert lost > 1e-6  # control
        assert distance < (1e-7 if size == 2 else 3 * lost)


def measure_dense() -> float:
    return apart(ours(Dense()).run(6).weights, Theirs(allreduce_hook).run(6).weights)


def test_dense_is_torchs_hook_to_the_bit(ranks2: RankPool) -> None:
    assert ranks2.run(measure_dense) == [0.0, 0.0]


# PowerSGD: from the same first basis, what is sent and what is kept for later are torch's. In one bucket: torch's hook
# starts collectives from callbacks of others, with several buckets in another order on each rank, and gloo aborts.

ONE: dict[str, Any] = {"buckets": 1, "dtype": torch.float64}


def from_our_basis(state: PowerSGDState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """torch's hook, but for the random basis that it begins with."""
    if state.iter >= START and bucket.index() not in state.q_memory_dict:
        reducer, like = PowerSGD(rank=state.matrix_approximation_rank), bucket.buffer()
        pieces = [piece for piece in reducer._pieces([p.shape for p in bucket.parameters()]) if piece.rank]
        bases = [like.new_empty(0), *(basis.flatten() for basis in reducer._bases(pieces, like))]
        state.q_memory_dict[bucket.index()] = torch.cat(bases)
        state.p_memory_dict[bucket.index()] = like.new_empty(sum(piece.rows * piece.rank for piece in pieces))
    return powerSGD_hook(state, bucket)


def measure_powersgd(rank: int, our_rank: int) -> tuple[float, float]:
    """Return the distance after eight steps through both, and the distance of an exact mean."""
    torchs = PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=START, min_compression_rate=1)
    theirs = Theirs(from_our_basis, torchs, **ONE).run(START)
    exact = Theirs(allreduce_hook, **ONE).run(START + 8).weights
    loop = ours(PowerSGD(rank=our_rank), **ONE).run(1)  # exact, while DDP settles its buckets
    loop.flat.parameters.copy_(theirs.weights)
    loop.step = START
    theirs.run(8)
    return apart(loop.run(8).weights, theirs.weights), apart(exact, theirs.weights)


@SIZES
@pytest.mark.parametrize("rank", [1, 2])
def test_powersgd_is_torchs_hook(rank: int, size: int, request: pytest.FixtureRequest) -> None:
    pool: RankPool = request.getfixturevalue(f"ranks{size}")
    for distance, lost in pool.run(measure_powersgd, rank, rank):
        assert distance < 1e-9
        assert lost > 1e-4
    assert min(distance for distance, _ in pool.run(measure_powersgd, rank, 3)) > 1e-5  # control
