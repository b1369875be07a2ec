"""Pictures of a model's inputs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_agent.data.task import Look

SMALL, LARGE = 96, 160  # longer side in pixels; smaller ones become about SMALL, larger ones LARGE
# From silent to loud: five colours of matplotlib's magma, linearly interpolated.
HEAT = torch.tensor([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])


def visible(shape: tuple[int, ...]) -> bool:
    """Return whether samples of this shape can be drawn: [height, width], or [1 or 3 channels, height, width]."""
    return (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))) and min(shape[-2:]) > 1


def pixels(inputs: Tensor, look: Look) -> Tensor:
    """Return uint8 [samples, height, width, 3] for visible `inputs` [samples, ...], each stretched to its own range.

    A spectrogram [..., frequencies, frames] gets its low frequencies at the bottom.
    """
    planes = inputs.detach().float().cpu()
    planes = planes.unsqueeze(1) if planes.dim() == 3 else planes
    scaled = _resized(_stretched(planes))
    if look == "spectrogram" and scaled.shape[1] == 1:
        return _heat(scaled[:, 0].flip(1))
    return _bytes(scaled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1))


def _stretched(planes: Tensor) -> Tensor:
    """Scale each sample to 0..1, all of its channels by the same factor. NaN becomes 0."""
    planes = planes.nan_to_num()
    low, high = planes.flatten(1).aminmax(dim=1)
    extent = (high - low).clamp(min=torch.finfo(planes.dtype).tiny)
    return (planes - low.view(-1, 1, 1, 1)) / extent.view(-1, 1, 1, 1)


def _resized(planes: Tensor) -> Tensor:
    """Enlarge by whole factors, so that pixels stay squares, or reduce."""
    longer = max(planes.shape[-2:])
    if longer > LARGE:
        size = [max(1, side * LARGE // longer) for side in planes.shape[-2:]]
        return F.interpolate(planes, size=size, mode="area")
    factor = max(1, SMALL // longer)
    return planes.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def _heat(values: Tensor) -> Tensor:
    position = values * (len(HEAT) - 1)
    below = position.floor().long().clamp(0, len(HEAT) - 2)
    share = (position - below).unsqueeze(-1)
    return (HEAT[below] * (1 - share) + HEAT[below + 1] * share).round().to(torch.uint8)


def _bytes(values: Tensor) -> Tensor:
    return (values * 255).round().to(torch.uint8).contiguous()
