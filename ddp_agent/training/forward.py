"""The way of a micro-batch from inputs to loss."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddp_agent.data.task import Task
from ddp_agent.distributed.regions import region

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Forward:
    """Forward passes in the run's precision.

    `model` is what the sync mode made of `module`: with DistributedDataParallel its backward averages gradients.
    """

    task: Task
    module: nn.Module
    model: nn.Module
    device: torch.device
    precision: str
    accumulation: int

    def loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return a micro-batch's part of the mean loss over the rank's share of the step."""
        with region("forward"):
            return self._loss(self.model, inputs, target)

    def own_loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the same, without any averaging in backward."""
        return self._loss(self.module, inputs, target)

    def _loss(self, model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        data, objective = self.task.data, self.task.objective
        inputs = data.transformed(inputs)
        if data.augment is not None:
            inputs = data.augment(inputs)
        criterion = objective.loss if objective.train_loss is None else objective.train_loss
        with self.autocast():
            loss = criterion(model(inputs), target)
        # Dividing by 1 would cost 20 us, most of it in backward.
        return loss / self.accumulation if self.accumulation > 1 else loss

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes have the run's precision."""
        dtype = DTYPES.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)
