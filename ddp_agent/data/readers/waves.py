"""Recordings of any rate and length, brought to one rate and length.

torchaudio, which resamples too, is not a dependency.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_agent.data.readers.wav import Recording

ZERO_CROSSINGS = 16  # of the filter, on each side
PASSED = 0.95  # share of the band of the lower rate: the filter needs room to fall


def fitted(recording: Recording, rate: int, length: int) -> Tensor:
    """Return the recording as int16 [length] at `rate`: cut at the end, or padded with silence."""
    samples = recording.samples
    if recording.rate != rate:
        samples = samples[: -(-length * recording.rate // rate)]  # the rest would be cut off
        samples = resampled(samples.float(), recording.rate, rate).round_().clamp_(-32768, 32767).short()
    return F.pad(samples[:length], (0, length - min(length, len(samples))))


def resampled(wave: Tensor, before: int, after: int) -> Tensor:
    """Return a float wave [samples], recorded at rate `before`, at rate `after`.

    Frequencies above half of the lower rate are filtered out. The result is a sum of windowed sinc functions, with one
    filter per position that a new sample can have between old ones.
    """
    common = math.gcd(before, after)
    before, after = before // common, after // common
    filters, reach = _filters(before, after)
    length = -(-len(wave) * after // before)
    padded = F.pad(wave, (reach, reach + before))
    wave = F.conv1d(padded.view(1, 1, -1), filters, stride=before)
    return wave[0].T.reshape(-1)[:length]


@functools.cache
def _filters(before: int, after: int) -> tuple[Tensor, int]:
    """Return filters [after, 1, taps], which are applied per `before` old samples, and the samples they reach back."""
    cutoff = PASSED * min(before, after) / before  # in units of half the old rate
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    position = torch.arange(-reach, reach + before, dtype=torch.float64)
    distance = position - torch.arange(after, dtype=torch.float64).unsqueeze(1) * before / after
    window = torch.where(distance.abs() < reach, torch.cos(math.pi / 2 * distance / reach).square(), 0.0)
    filters = torch.sinc(cutoff * distance) * cutoff * window
    return filters.float().unsqueeze(1), reach
