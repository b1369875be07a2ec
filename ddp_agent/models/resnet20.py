"""The residual network for CIFAR (He et al. 2016, arXiv:1512.03385, section 4.2, with n = 3)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ddp_agent.models.common.blocks import image_shape

BLOCKS = 3  # the paper's n: 6n + 2 = 20 layers
WIDTHS = (16, 32, 64)


class ResNet20(nn.Module):
    """The 20-layer residual network for CIFAR (He et al. 2016), with BatchNorm: 0.27 million parameters."""

    def __init__(self, *, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        channels, _, _ = image_shape(input_shape, "ResNet20")
        self.stem = nn.Sequential(_convolution(channels, WIDTHS[0]), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        blocks: list[nn.Module] = []
        before = WIDTHS[0]
        for width in WIDTHS:
            for _ in range(BLOCKS):
                blocks.append(_Block(before, width))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(before, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        pooled = self.blocks(self.stem(inputs)).mean((2, 3))
        outputs: Tensor = self.classifier(pooled)
        return outputs


class _Block(nn.Module):
    """Two convolutions around a shortcut without parameters, the paper's option A."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if before == width else 2  # wider blocks halve the image
        self.added = width - before
        self.first = nn.Sequential(_convolution(before, width, self.stride), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(_convolution(width, width), nn.BatchNorm2d(width))

    def forward(self, inputs: Tensor) -> Tensor:
        shortcut = inputs
        if self.added:
            shortcut = F.pad(inputs[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(self.second(self.first(inputs)) + shortcut)


def _convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
