"""Fully connected layers."""

import itertools
import math

from torch import nn

from ddp_agent.config.fields import PositiveInt


class MLP(nn.Sequential):
    """Fully connected layers with ReLU between them."""

    def __init__(self, *, input_shape: tuple[int, ...], outputs: int, hidden: tuple[PositiveInt, ...]) -> None:
        layers: list[nn.Module] = [nn.Flatten()] if len(input_shape) > 1 else []
        sizes = [math.prod(input_shape), *hidden]
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], outputs))
