"""A linear model."""

import math

from torch import Tensor, nn


class Linear(nn.Module):
    """The article's y = f(Wx + b).

    f is part of the loss: softmax in cross_entropy, the identity in half_squared_error.
    """

    def __init__(self, *, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(input_shape), outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(inputs.flatten(1))
        return outputs
