"""Gradient averaging through a reducer that may lose something, and resumes bit for bit all the same."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.policies import merge_buffers_
from ddp_agent.topology import Topology


@dataclass(kw_only=True, eq=False)
class Compressed(SyncStrategy):
    """Gradients averaged every step, after backward, by any reducer, with error feedback where it is lossy.

    The gradients are one tensor in parameter order, which never changes: what a reducer dropped from a parameter
    comes back to that parameter, after a resume too. DDP's buckets are regrouped, so `allreduce` could not promise it.
    """

    sends: ClassVar[Literal["gradients"]] = "gradients"

    gradient: Tensor = field(init=False, repr=False)
    _views: dict[nn.Parameter, Tensor] = field(init=False, repr=False)
    _gradients: Reducer = field(init=False, repr=False)

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        model = super().setup(model, optimizer, topology, reducer)
        self.gradient = torch.zeros_like(self.flat.parameters)
        self._views = {
            parameter: view
            for parameter, view in zip(model.parameters(), self.flat.views_of(self.gradient), strict=True)
            if parameter.requires_grad
        }
        self._gradients = reducer.for_tensor(self.flat.shapes)
        return model

    def backward_context(self, step: int, last_micro_batch: bool) -> AbstractContextManager[None]:
        self._collect()
        return nullcontext()

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        self._collect()  # a rank that had no batch takes part with zeros
        self._gradients.mean_(self.gradient, self.topology.world)
        self.syncs += 1

    def _collect(self) -> None:
        """Lets backward add to one tensor, so that nothing is packed. Gradients were cleared by the step before."""
        if all(parameter.grad is view for parameter, view in self._views.items()):
            return
        self.gradient.zero_()
        for parameter, view in self._views.items():
            parameter.grad = view

    @torch.no_grad()
    def flush(self, step: int) -> None:
        merge_buffers_(self.flat, self.buffers, self.topology.world)

    def to_consensus_(self) -> None:
        """Nothing to do: the parameters are the same on every rank."""
