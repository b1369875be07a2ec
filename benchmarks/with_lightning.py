"""Lightning's Trainer, in the mode that it has for measuring its overhead (`barebones`)."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.job import BATCH, Job


class Module(lightning.LightningModule):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.model = job.model()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(self.model(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.job.optimizer(self.model.parameters())


class Steps(lightning.Callback):
    def __init__(self, after_step: Callable[[], None]) -> None:
        self.after_step = after_step

    def on_train_batch_end(self, *_: Any) -> None:
        self.after_step()


def fit(module: Module, after_step: Callable[[], None], steps: int = -1) -> None:
    """For ever unless told how many steps. In the process group that is there, else in one that it starts.

    It finds a loader that shuffles and gives it a DistributedSampler.
    """
    job = module.job
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # that loaders have no workers, that epochs have no end
    trainer = lightning.Trainer(
        accelerator="gpu" if job.device.type == "cuda" else "cpu",
        devices=job.local_size,
        num_nodes=job.size // job.local_size,
        strategy=DDPStrategy(),
        barebones=True,
        max_epochs=-1,
        max_steps=steps,
        callbacks=[Steps(after_step)],
    )
    trainer.fit(module, DataLoader(job.data(), batch_size=BATCH, shuffle=True))
