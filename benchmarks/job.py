"""What every peer trains: the same model, data, batch and optimizer; and what must come out of it.

It imports nothing that only some of them need: their cold starts are timed with it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks import yardsticks
from ddp_agent.data.datasets.article import Article
from ddp_agent.data.task import Task
from ddp_agent.models.mlp import MLP

BATCH = 32  # samples a rank
PERIOD = 8  # of those that average parameters
SEED = 0
HIDDEN = 32
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4

Synchronised = Literal["gradients", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """For one rank. An epoch is `steps` long, as is a round: who pays for the turn of an epoch pays once a round."""

    rank: int
    size: int
    local_size: int
    device: torch.device
    steps: int

    @property
    def samples(self) -> int:
        return self.steps * BATCH * self.size

    def task(self) -> Task:
        return Article(
            samples=self.samples, test_samples=BATCH, features=10, separation=2.3, loss="cross_entropy"
        ).load()

    def data(self) -> TensorDataset:
        train = self.task().data.train
        assert isinstance(train, TensorDataset)
        return train

    def model(self) -> nn.Module:
        """With the same weights for all."""
        torch.manual_seed(SEED)
        return MLP(input_shape=(10,), outputs=2, hidden=(HIDDEN,)).to(self.device)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Fused for all, though few loops in the wild are: else this would be a comparison of optimizers."""
        return torch.optim.SGD(
            parameters, lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY, fused=True
        )

    def shuffled(self) -> Tensor:
        """Samples in the order of a first epoch of DistributedSampler or accelerate's sampler with this seed."""
        return torch.randperm(self.samples, generator=torch.Generator().manual_seed(SEED))


def expected(job: Job, taken: Tensor, synchronised: Synchronised) -> Tensor:
    """The parameters after a first epoch in which this rank takes the samples `taken` [steps, batch], by the book.

    A collective. What is averaged is averaged a tensor at a time, and nothing is clever.
    """
    model = job.model()
    parameters = list(model.parameters())
    optimizer = job.optimizer(parameters)
    inputs, targets = (tensor.to(job.device) for tensor in job.data().tensors)
    for step, indices in enumerate(taken.to(job.device), start=1):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[indices]), targets[indices]).backward()
        if synchronised == "gradients":
            yardsticks.tensorwise_mean_(parameter.grad for parameter in parameters if parameter.grad is not None)
        optimizer.step()
        if synchronised == "parameters" and step % PERIOD == 0:
            yardsticks.tensorwise_mean_(parameters)
    return flat(parameters)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
