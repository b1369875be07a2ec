"""What a model sees, made visible."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_agent.data.task import Look

SMALL, LARGE = 96, 160  # pixels of a picture's longer side: enlarged to about the one, reduced to the other
# From silence to loud: five colours of matplotlib's magma, with straight lines between them.
HEAT = torch.tensor([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])


def visible(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape can be drawn: [height, width], or [channels, height, width] with 1 or 3 of them."""
    return (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))) and min(shape[-2:]) > 1


def pixels(inputs: Tensor, look: Look) -> Tensor:
    """uint8 [samples, height, width, 3] of visible inputs [samples, ...]: each from its darkest to its lightest value.

    A spectrogram [..., frequencies, frames] gets its low frequencies at the bottom.
    """
    planes = inputs.detach().float().cpu()
    planes = planes.unsqueeze(1) if planes.dim() == 3 else planes
    scaled = _resized(_stretched(planes))
    if look == "spectrogram" and scaled.shape[1] == 1:
        return _heat(scaled[:, 0].flip(1))
    return _bytes(scaled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1))


def _stretched(planes: Tensor) -> Tensor:
    """To 0..1, a sample at a time and its channels together; what is no number becomes 0."""
    planes = planes.nan_to_num()
    low, high = planes.flatten(1).aminmax(dim=1)
    extent = (high - low).clamp(min=torch.finfo(planes.dtype).tiny)
    return (planes - low.view(-1, 1, 1, 1)) / extent.view(-1, 1, 1, 1)


def _resized(planes: Tensor) -> Tensor:
    """By whole factors where enlarged, so that pixels stay squares."""
    longer = max(planes.shape[-2:])
    if longer > LARGE:
        size = [max(1, side * LARGE // longer) for side in planes.shape[-2:]]
        return F.interpolate(planes, size=size, mode="area")
    factor = max(1, SMALL // longer)
    return planes.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def _heat(values: Tensor) -> Tensor:
    place = values * (len(HEAT) - 1)
    below = place.floor().long().clamp(0, len(HEAT) - 2)
    share = (place - below).unsqueeze(-1)
    return (HEAT[below] * (1 - share) + HEAT[below + 1] * share).round().to(torch.uint8)


def _bytes(values: Tensor) -> Tensor:
    return (values * 255).round().to(torch.uint8).contiguous()
