"""The loops of torch's own tutorials: a DataLoader, and DistributedDataParallel or PostLocalSGDOptimizer."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.job import BATCH, PERIOD, SEED, Job


class Tutorial:
    """`synchronised`: its gradients, by DDP."""

    def __init__(self, job: Job) -> None:
        if job.device.type == "cuda":
            torch.cuda.set_device(job.device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if job.device.type == "cuda" else "gloo")
        self.device = job.device
        self.sampler: DistributedSampler[Any] = DistributedSampler(job.data(), seed=SEED)
        self.loader = DataLoader(
            job.data(), batch_size=BATCH, sampler=self.sampler, pin_memory=job.device.type == "cuda"
        )
        self.model, self.optimizer = self.synchronised(job, job.model())
        self.batches = self.endless()

    def synchronised(self, job: Job, model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        devices = [job.device.index] if job.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices), job.optimizer(model.parameters())

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            self.sampler.set_epoch(epoch)
            yield from self.loader

    def __call__(self, steps: int) -> None:
        for inputs, targets in itertools.islice(self.batches, steps):
            inputs, targets = inputs.to(self.device), targets.to(self.device)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(inputs), targets)
            loss.backward()
            self.optimizer.step()


class PostLocal(Tutorial):
    """Parameters averaged by torch. Without DDP, whose hook for this would reduce gradients within the machine."""

    def synchronised(self, job: Job, model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        averager = PeriodicModelAverager(period=PERIOD, warmup_steps=PERIOD - 1)  # from 0: after the steps 8, 16, …
        return model, PostLocalSGDOptimizer(job.optimizer(model.parameters()), averager)


def taken(job: Job) -> Tensor:
    """Which samples DistributedSampler gives this rank in the first epoch, [steps, batch]."""
    return job.shuffled()[job.rank :: job.size].view(job.steps, BATCH)
