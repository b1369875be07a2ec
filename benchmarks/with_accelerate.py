"""The loops of accelerate's documentation."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.local_sgd import LocalSGD
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.job import BATCH, PERIOD, SEED, Job


class Accelerated:
    """Gradients averaged every step, by the DistributedDataParallel that `prepare` wraps the model in."""

    def __init__(self, job: Job) -> None:
        self.accelerator = _accelerator(job.device)
        loader = DataLoader(job.data(), batch_size=BATCH, shuffle=True)
        model = job.model()
        prepared = self.accelerator.prepare(model, job.optimizer(model.parameters()), loader)
        self.model, self.optimizer, self.loader = prepared
        self.batches = self.endless()

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def __call__(self, steps: int) -> None:
        for inputs, targets in itertools.islice(self.batches, steps):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(inputs), targets)
            self.accelerator.backward(loss)
            self.optimizer.step()


class AcceleratedLocalSGD(Accelerated):
    """Parameters averaged by accelerate's LocalSGD."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.local_sgd = _local_sgd(self.accelerator, self.model, PERIOD)
        self.entered = ExitStack()
        self.entered.enter_context(self.local_sgd)  # for good: leaving it would average once more

    def __call__(self, steps: int) -> None:
        for inputs, targets in itertools.islice(self.batches, steps):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(inputs), targets)
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.local_sgd.step()


def averager(model: nn.Module, device: torch.device) -> Any:
    """Averages the parameters of `model` over ranks in every call."""
    accelerator = _accelerator(device)
    local_sgd = _local_sgd(accelerator, accelerator.prepare(model), 1)
    return local_sgd.step


def taken(job: Job) -> Tensor:
    """Which samples this rank gets in the first epoch, [steps, batch]."""
    return job.shuffled().view(job.steps, job.size, BATCH)[:, job.rank]


def _accelerator(device: torch.device) -> Any:
    """In the process group that is there, else in one that it starts."""
    configuration = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=SEED)
    return Accelerator(cpu=device.type == "cpu", dataloader_config=configuration)


def _local_sgd(accelerator: Any, model: nn.Module, period: int) -> Any:
    return LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=period)
