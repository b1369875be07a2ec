"""The inner optimizers: those of torch, fused into one kernel per step on CPU and GPU."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ddp_agent.config.fields import Decay, Fraction, NonNegativeFloat, check_fields


@dataclass(kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    lr: NonNegativeFloat
    momentum: Fraction
    nesterov: bool
    weight_decay: NonNegativeFloat

    def __post_init__(self) -> None:
        check_fields(self)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: found true with momentum 0, expected a momentum above 0")

    def create(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameters."""
        return torch.optim.SGD(parameters, **vars(self), fused=True)


@dataclass(kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (torch.optim.AdamW)."""

    lr: NonNegativeFloat
    beta1: Decay
    beta2: Decay
    eps: NonNegativeFloat
    weight_decay: NonNegativeFloat

    def __post_init__(self) -> None:
        check_fields(self)

    def create(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameters."""
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(parameters, self.lr, betas, self.eps, self.weight_decay, fused=True)
