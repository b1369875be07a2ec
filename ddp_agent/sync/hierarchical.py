"""Frequent averaging inside a node, rare averaging between nodes."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ddp_agent.config.fields import PositiveInt
from ddp_agent.distributed.traffic import Collective, RunSizes, times
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.base import SyncTraits
from ddp_agent.sync.engine.gradients import MeanGradients, overlapping, overlapping_traffic
from ddp_agent.sync.engine.state_policies import average_, averaging_traffic, merge_optimizer_state_, optimizer_traffic
from ddp_agent.sync.periodic import Paced


@dataclass(kw_only=True, eq=False)
class Hierarchical(Paced):
    """Mean inside the node every H1 steps, over all ranks every H2 (Lin et al. 2020, arXiv:1808.07217).

    With H1 = 1 a node averages gradients, as DistributedDataParallel does; its ranks then are one, for every optimizer.
    """

    _traits = replace(Paced._traits, survives_lost_rank=False, uses_nodes=True)

    node_period: PositiveInt = 1  # H1
    global_period: PositiveInt  # H2, which the cadence changes

    _gradients: MeanGradients | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.node_period > self.global_period:
            raise ValueError(
                f"node_period: found {self.node_period} beside global_period {self.global_period}, expected at most as "
                "much: nodes would never average on their own"
            )

    @property
    def traits(self) -> SyncTraits:
        return replace(super().traits, averages_in_backward=self.node_period == 1)

    def _reducer_problem(self, reducer: Reducer) -> str | None:
        if reducer.traits.exact and reducer.traits.remembers:
            return f"Hierarchical averages over two sets of ranks in turn, which {reducer} cannot tell apart"
        return super()._reducer_problem(reducer)

    def _rank_loss_problem(self) -> str:
        return (
            "Hierarchical averages inside nodes, which are fixed sets of ranks that a lost one takes apart; use "
            "sync=local_sgd"
        )

    @property
    def _base_period(self) -> int:
        return self.global_period

    def traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        node = replace(run, ranks=run.ranks_per_node)
        if self.node_period == 1:
            inside = overlapping_traffic(node, reducer)
        else:
            means = [*optimizer_traffic(self.optimizer_state, node), *averaging_traffic(self.buffers, reducer, node)]
            both = math.lcm(self.node_period, self.global_period)
            inside = times(means, run.steps // self.node_period - run.steps // both)
        return [*(replace(each, group="node") for each in inside), *super().traffic(run, reducer)]

    def _set_up(self, model: nn.Module) -> nn.Module:
        model = super()._set_up(model)
        self._gradients = None
        if self.node_period == 1 and self._topology.node.size > 1:
            self._gradients = overlapping(model, self._flat, self._reducer, self._topology.node)
        return self._gradients.module if self._gradients else model

    def backward_context(self, step: int, last_micro_batch: bool) -> AbstractContextManager[None]:
        return self._gradients.context(last_micro_batch) if self._gradients else nullcontext()

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        if self._gradients:
            self._gradients.finish()
            self._syncs += 1

    def _exchanges(self, step: int) -> bool:
        return self._due(step) or (self._gradients is None and step % self.node_period == 0)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        super().after_step(step)
        node = self._topology.node
        if self._gradients is None and node.size > 1 and step != self._synced_step and step % self.node_period == 0:
            average_(self._flat, self.buffers, self._reducer, node)
            merge_optimizer_state_(self._optimizer, self._flat, self.optimizer_state, node)
            self._syncs += 1

    def _replicated(self, step: int) -> Tensor | None:
        return self._flat.parameters if self._synced_step == step else None

    def merge_parameters_(self) -> None:
        """Average over all ranks, which makes the nodes' own mean needless at this step."""
        average_(self._flat, self.buffers, self._reducer, self._topology.world)
