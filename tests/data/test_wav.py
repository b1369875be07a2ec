"""Recordings: what is read out of WAV files, what is refused, and how one rate becomes another."""

import math
import struct

import numpy
import pytest
import torch
from torch import Tensor
from wav_files import chunk, form, riff, tone, wav

from ddp_agent.data.readers.wav import Recording, read_wav
from ddp_agent.data.readers.waves import fitted, resampled
from ddp_agent.errors import DataError


@pytest.mark.parametrize("code", [1, 0xFFFE])
def test_sixteen_bits_come_back_as_they_were_written(code: int) -> None:
    samples = torch.tensor([-32768, -1, 0, 1, 32767], dtype=torch.int16)
    found = read_wav(wav(samples, rate=11025, code=code), "a.wav")
    assert torch.equal(found.samples, samples) and found.samples.dtype == torch.int16 and found.rate == 11025


def test_eight_bits_have_no_sign() -> None:
    data = riff(form(bits=8), chunk(b"data", bytes([0, 127, 128, 129, 255])))
    assert read_wav(data, "a.wav").samples.tolist() == [-32768, -256, 0, 256, 32512]


def test_other_chunks_are_passed_over() -> None:
    plain = chunk(b"data", tone(4).numpy().tobytes())
    data = riff(chunk(b"LIST", b"odd"), form(), chunk(b"fact", bytes(4)), plain, chunk(b"id3 ", b"x"))
    assert torch.equal(read_wav(data, "a.wav").samples, tone(4))
    assert torch.equal(read_wav(data + b"\0\0\0", "a.wav").samples, tone(4))  # less than a chunk's beginning


# What other programs write.


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF024])
@pytest.mark.parametrize("head", [b"RIFF", b"RF64"])
def test_sizes_that_a_pipe_could_not_know_mean_the_rest_of_the_file(size: int, head: bytes) -> None:
    samples, unknown = tone(30), struct.pack("<I", size)
    data = head + unknown + b"WAVE" + form() + b"data" + unknown + samples.numpy().tobytes()
    assert torch.equal(read_wav(data, "a.wav").samples, samples)
    assert torch.equal(read_wav(data + b"x", "a.wav").samples, samples)  # half a sample at the end


@pytest.mark.parametrize("kind", [b"LIST", b"abcd"])
def test_an_odd_chunk_may_lack_its_padding(kind: bytes) -> None:
    odd = kind + struct.pack("<I", 5) + b"INFOx"
    for between in (odd, odd + b"\0"):
        assert torch.equal(read_wav(riff(form(), between, chunk(b"data", GOOD[44:])), "a.wav").samples, tone(30))


LEVELS = [-1.0, -0.5, 0.0, 0.25, 32767 / 32768]


def packed_samples(bits: int) -> bytes:
    whole = [round(level * 2 ** (bits - 1)) for level in LEVELS]
    return b"".join(level.to_bytes(bits // 8, "little", signed=True) for level in whole)


@pytest.mark.parametrize("code", [1, 0xFFFE])
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_samples_of_any_width_are_the_same_sound(bits: int, code: int) -> None:
    found = read_wav(riff(form(bits=bits, code=code), chunk(b"data", packed_samples(bits))), "a.wav")
    assert found.samples.tolist() == [-32768, -16384, 0, 8192, 32767]


def floats(levels: list[float], kind: str = "<f4", channels: int = 1) -> bytes:
    data = numpy.array(levels, kind)
    return riff(form(bits=8 * data.itemsize, code=3, channels=channels), chunk(b"data", data.tobytes()))


@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_floating_point_samples_are_the_same_sound(kind: str) -> None:
    assert read_wav(floats(LEVELS, kind), "a.wav").samples.tolist() == [-32768, -16384, 0, 8192, 32767]
    assert read_wav(floats([1.5, -1.5], kind), "a.wav").samples.tolist() == [32767, -32768]  # a peak that is too loud


def test_channels_are_averaged() -> None:
    left, right = tone(30, seed=1), tone(30, seed=2)
    found = read_wav(wav(torch.stack([left, right], 1).view(-1), channels=2), "a.wav")
    assert (found.samples - (left.float() + right.float()) / 2).abs().max() <= 0.5
    loud = torch.full((8,), 32767, dtype=torch.int16)
    assert read_wav(wav(loud, channels=4), "a.wav").samples.tolist() == [32767, 32767]  # the sum is no int16
    assert read_wav(floats([0.5, -0.5, 1.0, 0.5], channels=2), "a.wav").samples.tolist() == [0, 24576]


GOOD = wav(tone(30))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found 0 bytes, which end before the samples, expected a WAV file"),
        (b"ID3\x04" + GOOD, "found file does not start with RIFF id, expected a WAV file"),
        (b"RIFX" + GOOD[4:], "found file does not start with RIFF id"),
        (GOOD[:8] + b"AVI " + GOOD[12:], "found not a WAVE file, expected a WAV file"),
        (GOOD[:-1], "found 59 bytes of samples, expected 60; the file is cut off"),
        (GOOD[:30], "found 30 bytes, which end before the samples"),
        (GOOD[:36], "found 36 bytes, which end before the samples"),
        (riff(chunk(b"data", bytes(8))), "found data chunk before fmt chunk"),
        (riff(form(), chunk(b"data", b"")), "found 0 bytes of samples, expected 2"),
        (riff(form(), chunk(b"data", b"x")), "found 0 bytes of samples, expected 2"),
        (
            riff(chunk(b"fmt ", bytes(14)), chunk(b"data", bytes(8))),
            "found a fmt chunk of 14 bytes, expected 16 or more",
        ),
        (riff(chunk(b"fmt ", bytes(16)), chunk(b"data", bytes(8))), "found unknown format: 0"),
        (wav(tone(8), channels=0), "found 0 channels of 16 bits"),
        (riff(form(bits=40), chunk(b"data", bytes(10))), "found 1 channels of 40 bits .* expected channels of 8 to 32"),
        (riff(form(code=3, bits=16), chunk(b"data", bytes(8))), "found 1 channels of 16 bits .* in format 3"),
        (floats([0.1, 1e5]), "found samples up to 100000, expected numbers from -1 to 1"),
        (floats([0.1, math.nan]), "found samples up to nan, expected numbers from -1 to 1"),
        (riff(form(bits=24), chunk(b"data", bytes(2))), "found 0 bytes of samples, expected 3"),
        (riff(form(code=7, bits=8), chunk(b"data", bytes(8))), "found unknown format: 7, expected .* uncompressed"),
        (wav(tone(8), rate=0), "found 1 channels of 16 bits and 0 samples per second"),
    ],
)
def test_anything_else_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.wav: {message}"):
        read_wav(data, "a.wav")


def test_an_extensible_header_may_hide_another_format() -> None:
    data = bytearray(wav(tone(8), code=0xFFFE))
    data[44] = 6  # the format that the header's 16 bytes name: A-law
    with pytest.raises(DataError, match=r"found unknown format: 6"):
        read_wav(bytes(data), "a.wav")
    data[50] += 1  # no name of Microsoft's at all
    with pytest.raises(DataError, match=r"found unknown extended format"):
        read_wav(bytes(data), "a.wav")


# One rate from another.


def sine(hertz: float, rate: int) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(rate) / rate)  # a second


@pytest.mark.parametrize(("before", "after"), [(16000, 8000), (8000, 16000), (44100, 8000), (11025, 16000)])
def test_a_tone_stays_the_same_tone(before: int, after: int) -> None:
    for hertz in (50, 440, 3000):
        found = resampled(sine(hertz, before), before, after)
        assert len(found) == after
        inner = slice(after // 20, -after // 20)
        assert (found - sine(hertz, after))[inner].abs().max() < 0.01


def test_what_the_new_rate_cannot_hold_is_left_out() -> None:
    assert resampled(sine(5000, 16000), 16000, 8000)[400:-400].abs().max() < 0.01
    assert sine(5000, 16000)[::2].abs().max() > 0.9  # control: it would be heard as 3 kHz


def test_waves_are_cut_and_followed_by_silence() -> None:
    samples = tone(300)
    assert torch.equal(fitted(Recording(samples, 8000), 8000, 200), samples[:200])
    longer = fitted(Recording(samples, 8000), 8000, 500)
    assert torch.equal(longer[:300], samples) and not longer[300:].any()


def test_waves_of_another_rate_keep_their_length_in_seconds() -> None:
    loud = (sine(440, 16000) * 32767).short()
    found = fitted(Recording(loud, 16000), 8000, 4000)
    assert found.dtype == torch.int16 and found.shape == (4000,)
    assert (found - sine(440, 8000)[:4000] * 32767)[100:-100].abs().max() < 330
    clipped = fitted(Recording(torch.full((1600,), 32767, dtype=torch.int16), 16000), 8000, 800)
    assert clipped.min() >= -3000  # an overshoot is cut off, not wrapped around
