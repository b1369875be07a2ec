"""Log-mel spectrograms of speech.

torchaudio, which computes them too, is not a dependency.
"""

import functools
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ddp_agent.config.fields import Range

Rate = Annotated[int, Range(1000, 192_000)]
"""Samples per second."""
WINDOW_S = 0.032  # 256 samples at 8 kHz
HOP_S = 0.016
FLOOR = 1e-6  # added to a band's power, where full scale is 1
FULL_SCALE = 32768  # for 16 bits


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """A transform of waves int16 [n, samples] to log power in mel bands [n, 1, mels, frames], on the waves' device.

    Each clip is normalised to mean 0 and variance 1, so that the loudness of a recording has no influence.
    """

    rate: int
    mels: int

    def __call__(self, waves: Tensor) -> Tensor:
        """Return the spectrograms of `waves`."""
        size = round(WINDOW_S * self.rate)
        spectra = torch.stft(
            waves.to(torch.float32).div_(FULL_SCALE),
            n_fft=size,
            hop_length=round(HOP_S * self.rate),
            window=_window(size, waves.device),
            pad_mode="constant",
            return_complex=True,
        )
        power = torch.view_as_real(spectra).square().sum(-1)
        bands = (_bands(self.rate, size, self.mels, waves.device) @ power).add_(FLOOR).log_()
        variance, mean = torch.var_mean(bands, (1, 2), keepdim=True)
        return bands.sub_(mean).div_(variance.add_(FLOOR).sqrt_()).unsqueeze(1)


@functools.cache
def _window(size: int, device: torch.device) -> Tensor:
    """Return a Hann window whose squares add up to 1: then the power does not depend on its length."""
    window = torch.hann_window(size, device=device)
    return window / window.square().sum().sqrt()


@functools.cache
def _bands(rate: int, size: int, mels: int, device: torch.device) -> Tensor:
    """Return triangles [mels, size // 2 + 1] that overlap by half and have one width in mel (O'Shaughnessy 1987)."""
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, highest, mels + 2) / 2595) - 1)
    hertz = torch.linspace(0, rate / 2, size // 2 + 1)
    low, peak, high = (edges[first : first + mels].unsqueeze(1) for first in range(3))
    rising, falling = (hertz - low) / (peak - low), (high - hertz) / (high - peak)
    return torch.minimum(rising, falling).clamp_(min=0).to(device)
