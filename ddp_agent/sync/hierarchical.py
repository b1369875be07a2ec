"""Frequent averaging inside a node, rare averaging between nodes."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from ddp_agent.config.fields import PositiveInt
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.engine.gradients import MeanGradients, overlapping
from ddp_agent.sync.engine.state_policies import average_, merge_optimizer_state_
from ddp_agent.sync.periodic import Paced


@dataclass(kw_only=True, eq=False)
class Hierarchical(Paced):
    """Mean inside the node every H1 steps, over all ranks every H2 (Lin et al. 2020, arXiv:1808.07217).

    With H1 = 1 a node averages gradients, as DistributedDataParallel does; its ranks then are one, for every optimizer.
    """

    sends: ClassVar[Literal["parameters"]] = "parameters"

    node_period: PositiveInt = 1  # H1
    global_period: PositiveInt  # H2, which the cadence changes

    gradients: MeanGradients | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.node_period > self.global_period:
            raise ValueError(
                f"node_period: found {self.node_period} beside global_period {self.global_period}, expected at most as "
                "much: nodes would never average on their own"
            )

    def refusal(self, reducer: Reducer) -> str | None:
        if reducer.exact and reducer.remembers:
            return f"Hierarchical averages over two sets of ranks in turn, which {reducer} cannot tell apart"
        return super().refusal(reducer)

    def loss_refusal(self) -> str | None:
        return (
            "Hierarchical averages inside nodes, which are fixed sets of ranks that a lost one takes apart; use "
            "sync=local_sgd"
        )

    @property
    def base_period(self) -> int:
        return self.global_period

    @property
    def reduces_in_backward(self) -> bool:
        return self.node_period == 1

    def setup(self, model: nn.Module, optimizer: Optimizer, topology: Topology, reducer: Reducer) -> nn.Module:
        model = super().setup(model, optimizer, topology, reducer)
        self.gradients = None
        if self.node_period == 1 and topology.node.size > 1:
            self.gradients = overlapping(model, self.flat, reducer, topology.node)
        return self.gradients.module if self.gradients else model

    def backward_context(self, step: int, last_micro_batch: bool) -> AbstractContextManager[None]:
        return self.gradients.context(last_micro_batch) if self.gradients else nullcontext()

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        if self.gradients:
            self.gradients.finish()
            self.syncs += 1

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        super().after_step(step)
        node = self.topology.node
        if self.gradients is None and node.size > 1 and step != self.synced_step and step % self.node_period == 0:
            average_(self.flat, self.buffers, self.reducer, node)
            merge_optimizer_state_(self.optimizer, self.flat, self.optimizer_state, node)
            self.syncs += 1

    def merge_parameters_(self) -> None:
        """One mean over all ranks, which makes the nodes' own needless at this step."""
        average_(self.flat, self.buffers, self.reducer, self.topology.world)
