"""A model whose heads belong to some of the ranks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import DTYPE, Loop, apart, random_batch, refusal
from mode_cases import ALL
from pieces import REDUCERS
from torch import Tensor, nn

from ddp_agent.models.common.multi_task import MultiTask
from ddp_agent.sync import SyncStrategy
from ddp_agent.sync.engine.by_owner import ByOwner

HEADS = ("a", "b", "c")
PARTED = {"a": (0, 2), "b": (1,), "c": (2,)}  # of three ranks
Owners = dict[str, tuple[int, ...]]
SHARED: Owners = dict.fromkeys(HEADS, (0, 1, 2))

MODES = pytest.mark.parametrize("mode", ALL)


def allowed(mode: str) -> list[str]:
    found = [name for name, make in REDUCERS.items() if refusal(ALL[mode](), make()) is None]
    return [name for name in found if (mode, name) != ("allreduce in buckets", "powersgd")]


def plain() -> MultiTask:
    """Three heads of one shape, which nothing but their names tells apart."""
    torch.manual_seed(1)
    heads = {head: nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1)) for head in HEADS}
    return MultiTask(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), heads).to(DTYPE)


def normed() -> MultiTask:
    """Return a model with BatchNorm in trunk and heads."""
    torch.manual_seed(1)
    trunk = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh())
    heads = {head: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)) for head in HEADS}
    return MultiTask(trunk, heads).to(DTYPE)


def same_batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    return random_batch(step, 0)


class Heads(Loop):
    """A rank's own heads, each towards a target of its own. Without `owners`: all heads, and no ByOwner."""

    def __init__(
        self,
        mode: SyncStrategy,
        owners: Owners | None = PARTED,
        *,
        model: Callable[[], MultiTask] = normed,
        amplified: bool = True,
        **options: Any,
    ) -> None:
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.owners = owners or dict.fromkeys(HEADS, tuple(range(ranks)))
        mine = {head: ranks / len(own) if amplified else 1.0 for head, own in self.owners.items() if rank in own}
        self.columns = [HEADS.index(head) for head in mine]

        def told() -> nn.Module:
            module = model()
            module.trained = mine
            return module

        named = {f"heads.{head}": own for head, own in self.owners.items()}
        super().__init__(ByOwner(mode=mode, owners=named) if owners else mode, model=told, **options)

    def run(self, steps: int) -> "Heads":
        for _ in range(steps):
            self.step += 1
            inputs, target = self.batches(self.step, self.topology.world.rank)
            with self.sync.backward_context(self.step, last_micro_batch=True):
                errors = (self.model(inputs) - target[:, self.columns]).square().mean(0)
                (errors.sum() / len(HEADS)).backward()
            self.sync.before_step(self.step)
            self.optimizer.step()
            self.sync.after_step(self.step)
            self.optimizer.zero_grad()
        return self

    def flush(self) -> "Heads":
        super().flush()
        return self

    def state(self, *, buffers: bool = True) -> dict[str, Tensor]:
        """Return trunk and heads, each as one vector."""
        found = self.module.state_dict() if buffers else dict(self.module.named_parameters())
        parts = ["trunk", *(f"heads.{head}" for head in HEADS)]
        return {
            part.removeprefix("heads."): torch.cat(
                [tensor.detach().flatten().to(DTYPE) for name, tensor in found.items() if name.startswith(f"{part}.")]
            )
            for part in parts
        }

    def of_all(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return every rank's values of each part [ranks, numbers]."""
        with self.topology.world.uncounted():
            return {part: torch.stack(self.topology.world.all_gather(mine)) for part, mine in state.items()}

    def over_owners(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean of each part over those who train it, written out."""
        everybody = {"trunk": tuple(range(self.topology.world.size)), **self.owners}
        return {part: rows[list(everybody[part])].mean(0) for part, rows in self.of_all(state).items()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(apart(one[part], other[part]) for part in one)
