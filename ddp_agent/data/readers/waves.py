"""Recordings of any rate and length as waves of one."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_agent.data.readers.wav import Recording

ZERO_CROSSINGS = 16  # of the filter, to each side
PASSED = 0.95  # of what the lower rate can hold: the filter needs room to fall


def fitted(recording: Recording, rate: int, length: int) -> Tensor:
    """int16 [length] at `rate`: cut at the end, or followed by silence."""
    samples = recording.samples
    if recording.rate != rate:
        samples = samples[: -(-length * recording.rate // rate)]  # the rest would be cut off
        samples = resampled(samples.float(), recording.rate, rate).round_().clamp_(-32768, 32767).short()
    return F.pad(samples[:length], (0, length - min(length, len(samples))))


def resampled(wave: Tensor, before: int, after: int) -> Tensor:
    """Float [samples] at the rate `before`, at the rate `after`: what lies above half of the lower one is filtered out.

    A sum of windowed sinc functions, one filter for each place that a new sample can have between old ones.
    """
    common = math.gcd(before, after)
    before, after = before // common, after // common
    filters, reach = _filters(before, after)
    length = -(-len(wave) * after // before)
    padded = F.pad(wave, (reach, reach + before))
    found = F.conv1d(padded.view(1, 1, -1), filters, stride=before)
    return found[0].T.reshape(-1)[:length]


@functools.cache
def _filters(before: int, after: int) -> tuple[Tensor, int]:
    """[after, 1, taps] for every `before` old samples, and how far they reach back."""
    cutoff = PASSED * min(before, after) / before  # of half the old rate
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    place = torch.arange(-reach, reach + before, dtype=torch.float64)
    distance = place - torch.arange(after, dtype=torch.float64).unsqueeze(1) * before / after
    window = torch.where(distance.abs() < reach, torch.cos(math.pi / 2 * distance / reach).square(), 0.0)
    filters = torch.sinc(cutoff * distance) * cutoff * window
    return filters.float().unsqueeze(1), reach
