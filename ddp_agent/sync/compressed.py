"""Gradient averaging through a reducer that may lose something, and resumes bit for bit all the same."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.gradients import FlatGradients
from ddp_agent.sync.engine.state_policies import merge_buffers_


@dataclass(kw_only=True, eq=False)
class Compressed(SyncStrategy):
    """Gradients averaged every step, after backward, by any reducer, with error feedback where it is lossy.

    What a reducer dropped from a parameter comes back to that parameter, after a resume too. DDP's buckets are
    regrouped, so `allreduce` could not promise it.
    """

    sends: ClassVar[Literal["gradients"]] = "gradients"

    gradients: FlatGradients = field(init=False, repr=False)

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        model = super().setup(model, optimizer, topology, reducer)
        self.gradients = FlatGradients(model, self.flat, reducer, topology.world)
        return model

    def backward_context(self, step: int, last_micro_batch: bool) -> AbstractContextManager[None]:
        return self.gradients.context(last_micro_batch)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        self.gradients.finish()
        self.syncs += 1

    @torch.no_grad()
    def flush(self, step: int) -> None:
        merge_buffers_(self.flat, self.buffers, self.topology.world)

    def common(self, step: int) -> Tensor:
        return self.flat.parameters

    def to_consensus_(self) -> None:
        """Nothing to do: the parameters are the same on every rank."""
