"""The loop that one would write by hand for one model and one way of synchronising, with nothing to spare."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import yardsticks
from ddp_agent.sync.engine.flat import Flat


@dataclass(frozen=True)
class Data:
    """One rank's share of the training set, on its device."""

    inputs: Tensor
    targets: Tensor
    batch_size: int


class Loop:
    """Training loop that calls `average` after every `period` steps."""

    def __init__(
        self, data: Data, model: nn.Module, average: Callable[[], None] | None = None, period: int = 1
    ) -> None:
        self.data = data
        self.model = model
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True
        )
        self.average = average
        self.period = period

    def __call__(self, steps: int) -> None:
        """Train for `steps` steps, from the start of an epoch."""
        model, optimizer, average, period = self.model, self.optimizer, self.average, self.period
        inputs, targets, batch_size = self.data.inputs, self.data.targets, self.data.batch_size
        step = 0
        while True:
            permutation = torch.randperm(len(inputs), device=inputs.device)
            for start in range(0, len(inputs) - batch_size + 1, batch_size):
                indices = permutation[start : start + batch_size]
                output = model(inputs.index_select(0, indices))
                F.cross_entropy(output, targets.index_select(0, indices)).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                if average is not None and step % period == 0:
                    average()
                if step == steps:
                    return


def independent(data: Data) -> Loop:
    """Return a loop without communication."""
    return Loop(data, _mlp(data))


def gradients_averaged(data: Data) -> Loop:
    """Return a loop that averages gradients in every step, by DistributedDataParallel."""
    return Loop(data, yardsticks.ddp(_mlp(data)))


def parameters_averaged(data: Data, period: int) -> Loop:
    """Return a loop that averages parameters every `period` steps. One collective, without packing."""
    model = _mlp(data)
    flat = Flat(model).parameters
    return Loop(data, model, lambda: yardsticks.flat_mean_(flat), period)


def _mlp(data: Data) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2)).to(data.inputs.device)
