"""Image files, and pixels as a model gets them."""

from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ddp_agent.errors import DataError

MOST_PIXELS = 1 << 26  # 200 MB as RGB


def read_rgb(file: Path | IO[bytes], name: str) -> Any:
    """Return the PIL image in `file`, in RGB.

    Raises DataError, which calls the file `name`, for content that Pillow cannot read, and for more than `MOST_PIXELS`
    pixels: a file of a few kilobytes can claim gigabytes.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises
        raise DataError(f"{name}: found no readable image ({error}), expected PNG or JPEG") from error


def normalise(pixels: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Return bytes as floats of mean 0 and variance 1; `mean` and `std` are of pixels scaled to 0..1."""
    return pixels.to(torch.float32).div_(255 * std).sub_(mean / std)
