"""Fully connected layers."""

import itertools
import math

from torch import Tensor, nn

from ddp_agent.fields import PositiveInt


class MLP(nn.Module):
    """Fully connected layers with ReLU between them."""

    def __init__(self, *, input_shape: tuple[int, ...], outputs: int, hidden: tuple[PositiveInt, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        sizes = [math.prod(input_shape), *hidden]
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs
