"""Small problems and a plain training loop for tests of laws. Everything is fp64 and seeded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ddp_agent.config.problems import RunFacts
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers import Dense, Reducer
from ddp_agent.sync import AllReduce, SyncStrategy
from ddp_agent.sync.engine.ddp_hook import OverlappedGradients
from ddp_agent.sync.engine.flat import Flat
from ddp_agent.sync.engine.gradients import MeanGradients
from ddp_agent.sync.engine.internals import internals

Batches = Callable[[int, int], tuple[Tensor, Tensor]]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]

DTYPE = torch.float64
ROWS = 6  # samples per micro-batch


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(DTYPE)


def norm_net() -> nn.Module:
    """Return a model with BatchNorm: floating-point buffers and an integer one."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).to(DTYPE)


def random_batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(ROWS, 5, generator=generator, dtype=DTYPE)
    return inputs, torch.randn(ROWS, 3, generator=generator, dtype=DTYPE)


def sgd(lr: float = 0.1, **options: Any) -> MakeOptimizer:
    return lambda parameters: SGD(parameters, lr=lr, **options)


class Loop:
    """An ordinary training loop that a test can stop after any step, to look at it, save it and continue."""

    def __init__(
        self,
        sync: SyncStrategy,
        *,
        optimizer: MakeOptimizer | None = None,
        reducer: Reducer | None = None,
        model: Callable[[], nn.Module] = mlp,
        batches: Batches = random_batch,
        topology: Topology | None = None,
    ) -> None:
        self.sync = sync
        self.module = model()
        self.optimizer = (optimizer or sgd())(self.module.parameters())
        self.topology = topology or Topology.create()
        self.reducer = reducer or Dense()
        self.model = sync.setup(self.module, self.optimizer, self.topology, self.reducer)
        self.batches = batches
        self.step = 0

    def run(self, steps: int) -> "Loop":
        for _ in range(steps):
            self.step += 1
            inputs, target = self.batches(self.step, self.topology.world.rank)
            with self.sync.backward_context(self.step, last_micro_batch=True):
                nn.functional.mse_loss(self.model(inputs), target).backward()
            self.sync.before_step(self.step)
            self.optimizer.step()
            self.sync.after_step(self.step)
            self.optimizer.zero_grad()
        return self

    def flush(self) -> "Loop":
        self.sync.flush(self.step)
        return self

    @property
    def weights(self) -> Tensor:
        return self.flat.parameters.clone()

    @property
    def flat(self) -> Flat:
        return internals(self.sync).flat

    @property
    def syncs(self) -> int:
        return internals(self.sync).syncs


@dataclass(kw_only=True, eq=False)
class InBuckets(AllReduce):
    """allreduce that treats any model like one that is larger than a bucket."""

    def _averaging(self, model: nn.Module) -> MeanGradients:
        return OverlappedGradients(model, self._reducer, self._topology.world)


def train(sync: SyncStrategy, steps: int = 8, **options: Any) -> Tensor:
    """Return the parameters after `steps` steps and the flush, as one vector."""
    return Loop(sync, **options).run(steps).flush().weights


def refusal(
    sync: SyncStrategy, reducer: Reducer | None = None, world_size: int | None = None, **facts: Any
) -> str | None:
    """Return the reason why a mode cannot work with a reducer, or in a run with these facts; None if it can."""
    pieces = {} if reducer is None else {"reducer": reducer}
    problems = sync.problems(RunFacts(world_size=world_size, pieces=pieces, **facts))
    return next((str(problem) for problem in problems if problem.fatal), None)


def alone() -> Topology:
    """Return the topology of a rank that is alone, inside a larger world."""
    return Topology(world=LocalComm(), ranks_per_node=1)


def apart(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference."""
    return (one - other).abs().max().item()
