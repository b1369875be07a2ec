"""Spectrograms of known sounds, and what training hides of them."""

import math

import pytest
import torch
from torch import Tensor

from ddp_agent.data.augment import shift_and_mask
from ddp_agent.data.readers.log_mel import LogMel, _bands, _window

CPU = torch.device("cpu")


def tone(hertz: float, rate: int = 8000, height: float = 9000) -> Tensor:
    return (height * torch.sin(2 * math.pi * hertz * torch.arange(rate) / rate)).short().unsqueeze(0)


@pytest.mark.parametrize("rate", [8000, 16000, 11025])
def test_a_tone_is_loudest_in_its_band(rate: int) -> None:
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    for hertz in (300, 1000, 3000):
        found = LogMel(rate=rate, mels=40)(tone(hertz, rate))
        expected = 2595 * math.log10(1 + hertz / 700) / highest * 41 - 1  # bands from 0, their peaks equally far apart
        assert found.shape[:3] == (1, 1, 40)
        loudest = found[0, 0, :, 10:-10].mean(1).argmax().item()
        assert abs(loudest - expected) <= 0.75


def test_frames_are_sixteen_milliseconds_apart() -> None:
    wave = torch.zeros(1, 8000, dtype=torch.int16)
    wave[0, 3840] = 20000  # a click at 0.48 s
    found = LogMel(rate=8000, mels=40)(wave)
    assert found.shape == (1, 1, 40, 63)
    assert found[0, 0].mean(0).argmax() == 30


def test_loudness_does_not_matter_and_clips_do_not_meet() -> None:
    quiet, loud, other = tone(500, height=2000), tone(500, height=20000), tone(1500)
    transform = LogMel(rate=8000, mels=40)
    alone, together = transform(quiet), transform(torch.cat([loud, other]))
    assert together.mean((1, 2, 3)).abs().max() < 1e-4 and (together.std((1, 2, 3)) - 1).abs().max() < 1e-2
    assert (alone[0] - together[0]).mean().abs() < 1e-4 and (alone[0] - together[0]).abs().mean() < 0.2
    assert transform(torch.zeros(1, 8000, dtype=torch.int16)).isfinite().all()


def test_bands_and_window_keep_the_power() -> None:
    bands = _bands(8000, 256, 40, CPU)
    assert bands.shape == (40, 129) and bands.min() >= 0
    inner = bands.sum(0)[3:118]  # from the first peak to the last
    torch.testing.assert_close(inner, torch.ones_like(inner))
    assert _window(256, CPU).square().sum() == pytest.approx(1)


def test_the_representation_tells_what_changes_numbers() -> None:
    assert repr(LogMel(rate=8000, mels=40)) == "LogMel(rate=8000, mels=40)"


def test_spectrograms_are_turned_in_time_and_strips_hidden() -> None:
    spectra = 1 + torch.rand(200, 1, 40, 100)
    torch.manual_seed(0)
    changed = shift_and_mask(spectra)
    torch.manual_seed(0)
    assert torch.equal(shift_and_mask(spectra), changed)
    assert not torch.equal(shift_and_mask(spectra), changed)
    shifts, bands, times = set(), set(), set()
    for before, after in zip(spectra[:, 0], changed[:, 0], strict=True):
        shown = after != 0
        rows, columns = shown.any(1), shown.any(0)
        assert torch.equal(shown, rows.unsqueeze(1) & columns)  # a strip each way, nothing else
        fits = [by for by in range(-10, 11) if torch.equal(before.roll(-by, 1)[shown], after[shown])]
        assert len(fits) == 1
        shifts.add(fits[0])
        bands.add(int((~rows).sum()))
        times.add(int((~columns).sum()))
        for hidden in (~rows, ~columns):  # in one piece
            places = hidden.nonzero().flatten()
            assert len(places) == 0 or places[-1] - places[0] + 1 == len(places)
    assert shifts == set(range(-10, 11)) and bands == set(range(7)) and times == set(range(16))
