"""Gradient all-reduce first, periodic parameter averaging later."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ddp_agent.config.fields import NonNegativeInt
from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.distributed.traffic import Collective, RunSizes
from ddp_agent.reducers.base import Reducer
from ddp_agent.sync.engine.gradients import MeanGradients, overlapping, overlapping_traffic
from ddp_agent.sync.engine.state_policies import buffer_traffic, merge_buffers_
from ddp_agent.sync.local_sgd import LocalSGD


@dataclass(kw_only=True, eq=False)
class PostLocalSGD(LocalSGD):
    """allreduce for the first `switch_step` steps, then local_sgd (Lin et al. 2020, arXiv:1808.07217)."""

    _traits = replace(LocalSGD._traits, averages_in_backward=True, survives_lost_rank=False)

    switch_step: NonNegativeInt

    _gradients: MeanGradients = field(init=False, repr=False)

    def problems(self, run: RunFacts) -> list[Problem]:
        problems = super().problems(run)
        if run.total_steps is not None and self.switch_step > run.total_steps:
            text = f"found {self.switch_step}, expected at most the run's {run.total_steps} steps"
            problems.append(Problem("sync.switch_step", text))
        return problems

    def traffic(self, run: RunSizes, reducer: Reducer) -> list[Collective]:
        first = replace(run, steps=min(run.steps, self.switch_step))
        gradients = [replace(each, until_step=self.switch_step) for each in overlapping_traffic(first, reducer)]
        buffers = buffer_traffic(self.buffers, run) if run.steps <= self.switch_step else []
        return [*gradients, *buffers, *super().traffic(run, reducer)]

    def _set_up(self, model: nn.Module) -> nn.Module:
        model = super()._set_up(model)
        self._gradients = overlapping(model, self._flat, self._reducer, self._topology.world)
        return self._gradients.module

    @property
    def _first_step(self) -> int:
        """Periods begin at the switch, so that the first one is as long as the others."""
        return self.switch_step

    def _replicated(self, step: int) -> Tensor | None:
        return self._flat.parameters if step <= self.switch_step else super()._replicated(step)

    def backward_context(self, step: int, last_micro_batch: bool) -> AbstractContextManager[None]:
        return self._gradients.context(last_micro_batch and step <= self.switch_step)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        if step <= self.switch_step:
            self._gradients.finish()
            self._syncs += 1

    @torch.no_grad()
    def flush(self, step: int) -> None:
        if step > self.switch_step:
            super().flush(step)
        else:
            merge_buffers_(self._flat, self.buffers, self._topology.world)
