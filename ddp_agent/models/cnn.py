"""A small convolutional network."""

import itertools

from torch import Tensor, nn

from ddp_agent.config.fields import PositiveInt
from ddp_agent.models.common.blocks import image_shape


class CNN(nn.Module):
    """Small convolutional network: 3 x 3 convolutions, each with pooling and ReLU, then two linear layers.

    It has no normalisation layers, so only parameters need to be synchronised.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        outputs: int,
        channels: tuple[PositiveInt, ...],
        hidden: PositiveInt,
    ) -> None:
        super().__init__()
        depth, height, width = image_shape(input_shape, "CNN")
        layers_at_most = min(height, width).bit_length() - 1  # every pooling halves both
        if len(channels) > layers_at_most:
            raise ValueError(
                f"channels: found {len(channels)} layers, expected at most {layers_at_most} "
                f"for images of {height} x {width} pixels"
            )
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((depth, *channels)):
            # ReLU after pooling gives the same result from a quarter of the numbers.
            layers += [nn.Conv2d(before, after, kernel_size=3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        features = (depth, *channels)[-1] * (height >> len(channels)) * (width >> len(channels))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(self.features(inputs))
        return outputs
