"""This tree's trainer on the job of its peers."""

from collections.abc import Callable

import torch

from benchmarks import step
from benchmarks.job import SEED, Job
from ddp_agent.distributed.topology import Topology
from ddp_agent.outputs.console import NullProgress
from ddp_agent.sync import SyncStrategy
from ddp_agent.training.trainer import Trainer


def new_trainer(job: Job, sync: SyncStrategy) -> Trainer:
    torch.manual_seed(SEED)
    return step.Stage(job.task(), Topology.create(), job.device).trainer(sync)


def train_for_ever(trainer: Trainer, after_step: Callable[[], None]) -> None:
    trainer.total_steps = step.NEVER
    trainer.progress = _Beat(after_step)
    trainer.fit()


class _Beat(NullProgress):
    def __init__(self, after_step: Callable[[], None]) -> None:
        self._after_step = after_step

    def advance(self, step: int) -> None:
        self._after_step()
