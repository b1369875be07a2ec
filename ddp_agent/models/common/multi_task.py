"""A model with one trunk and a head per task."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class MultiTask(nn.Module):
    """A trunk that all tasks share, and a last layer (head) per task.

    Returns the outputs of all heads side by side, [samples, outputs of all heads]. In training mode only the heads in
    `trained` are called.
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)
        self.trained = dict.fromkeys(heads, 1.0)
        """The heads that training calls, and the factor by which each head's gradient is multiplied in the trunk."""

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.trunk(inputs)
        if not self.training:
            return torch.cat([head(features) for head in self.heads.values()], 1)
        outputs = [self.heads[name](amplified(features, factor)) for name, factor in self.trained.items()]
        return torch.cat(outputs, 1)


def with_heads(model: nn.Module, outputs: Mapping[str, int]) -> MultiTask:
    """Replace the last layer of `model` by one per task. `outputs`: the number of outputs of each task.

    Raises ValueError for a model that does not end in a linear layer with all these outputs, or has no layer before it.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    name, last = layers.popitem() if layers else ("", None)
    kind = type(model).__name__
    if last is None or not name or last.out_features != sum(outputs.values()):
        raise ValueError(
            f"{kind} does not end in a linear layer that {len(outputs)} tasks could each have of their own"
        )
    model.set_submodule(name, nn.Identity())
    if next(model.parameters(), None) is None:
        raise ValueError(f"{kind} has one layer only, and its tasks would share nothing: use a model with more")
    bias = last.bias is not None
    return MultiTask(model, {task: nn.Linear(last.in_features, count, bias=bias) for task, count in outputs.items()})


def amplified(features: Tensor, factor: float) -> Tensor:
    """Return `features`. Their gradient is multiplied by `factor`."""
    return features if factor == 1 else _Amplified.apply(features, factor)


class _Amplified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
