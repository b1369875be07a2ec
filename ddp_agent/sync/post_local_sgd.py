"""Gradient all-reduce first, periodic parameter averaging later."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.config.fields import NonNegativeInt
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.engine.gradients import MeanGradients, overlapping
from ddp_agent.sync.engine.state_policies import merge_buffers_
from ddp_agent.sync.local_sgd import LocalSGD


@dataclass(kw_only=True, eq=False)
class PostLocalSGD(LocalSGD):
    """allreduce for the first `switch_step` steps, then local_sgd (Lin et al. 2020, arXiv:1808.07217)."""

    switch_step: NonNegativeInt

    gradients: MeanGradients = field(init=False, repr=False)

    @property
    def reduces_in_backward(self) -> bool:
        return True

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        model = super().setup(model, optimizer, topology, reducer)
        self.gradients = overlapping(model, self.flat, reducer, topology.world)
        return self.gradients.module

    @property
    def first_step(self) -> int:
        """Periods begin at the switch, so that the first one is as long as the others."""
        return self.switch_step

    def common(self, step: int) -> Tensor | None:
        return self.flat.parameters if step <= self.switch_step else super().common(step)

    def backward_context(self, step: int, last_micro_batch: bool) -> AbstractContextManager[None]:
        return self.gradients.context(last_micro_batch and step <= self.switch_step)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        if step <= self.switch_step:
            self.gradients.finish()
            self.syncs += 1

    @torch.no_grad()
    def flush(self, step: int) -> None:
        if step > self.switch_step:
            super().flush(step)
        else:
            merge_buffers_(self.flat, self.buffers, self.topology.world)
