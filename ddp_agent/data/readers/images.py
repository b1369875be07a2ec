"""Pixels as a model gets them."""

import torch
from torch import Tensor


def normalise(pixels: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Return bytes as floats of mean 0 and variance 1; `mean` and `std` are of pixels scaled to 0..1."""
    return pixels.to(torch.float32).div_(255 * std).sub_(mean / std)
