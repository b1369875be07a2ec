"""A small convolutional network for speech."""

import itertools

from torch import Tensor, nn

from ddp_agent.config.fields import Decay, PositiveInt
from ddp_agent.models.common.blocks import image_shape

GROUPS = 8  # GroupNorm normalises the channels of a group together


class SpeechCNN(nn.Module):
    """Small network for mel spectrograms: 3 x 3 convolutions with GroupNorm, the mean over time, one linear layer.

    GroupNorm (Wu and He 2018, arXiv:1803.08494) keeps no statistics, so only parameters need to be synchronised.
    """

    def __init__(
        self, *, input_shape: tuple[int, ...], outputs: int, channels: tuple[PositiveInt, ...], dropout: Decay
    ) -> None:
        super().__init__()
        depth, height, _ = image_shape(input_shape, "SpeechCNN")
        if uneven := [width for width in channels if width % GROUPS]:
            raise ValueError(f"channels: found {uneven[0]}, expected multiples of {GROUPS}")
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((depth, *channels)):
            layers += [
                nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False),
                nn.GroupNorm(GROUPS, after),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
            height = -(-height // 2)
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(height * (depth, *channels)[-1], outputs)
        for module in self.features:
            if isinstance(module, nn.Conv2d):  # before a norm, smaller weights take relatively larger steps
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return [batch, outputs] for `inputs` [batch, channels, mels, frames]."""
        over_time = self.features(inputs).mean(3).flatten(1)
        outputs: Tensor = self.classifier(self.dropout(over_time))
        return outputs
