"""Gradient all-reduce by DistributedDataParallel."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers import PowerSGD, Reducer
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.gradients import MeanGradients, overlapping
from ddp_agent.sync.engine.state_policies import merge_buffers_


@dataclass(kw_only=True, eq=False)
class AllReduce(SyncStrategy):
    """Gradients averaged every step, overlapping backward: DistributedDataParallel, the baseline."""

    sends: ClassVar[Literal["gradients"]] = "gradients"

    gradients: MeanGradients = field(init=False, repr=False)

    @property
    def reduces_in_backward(self) -> bool:
        return True

    def refusal(self, reducer: Reducer) -> str | None:
        return None if isinstance(reducer, PowerSGD) else super().refusal(reducer)

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        model = super().setup(model, optimizer, topology, reducer)
        self.gradients = overlapping(model, self.flat, reducer, topology.world)
        return self.gradients.module

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
