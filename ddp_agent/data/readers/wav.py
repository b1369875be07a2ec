"""Recordings in RIFF WAVE files: uncompressed, one channel, 8 or 16 bits."""

import io
import wave
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from ddp_agent.errors import DataError

PLAIN, EXTENSIBLE = b"\x01\x00", b"\xfe\xff"
# An extensible header names its format by 16 bytes, of which the first two are the plain format.
EXTENSIBLE_PCM = PLAIN + bytes.fromhex("000000001000800000aa00389b71")


@dataclass(frozen=True)
class Recording:
    """The samples of one channel."""

    samples: Tensor
    """int16, full scale. Samples of 8-bit files are multiplied by 256."""
    rate: int
    """Samples per second."""


def read_wav(data: bytes, name: str) -> Recording:
    """Return the recording in `data`, the content of the file `name`. Raise DataError for any other content."""
    try:
        with wave.open(io.BytesIO(_with_plain_header(data))) as file:
            channels, width, rate, count, *_ = file.getparams()
            samples = file.readframes(count)
    except (wave.Error, EOFError, RuntimeError) as error:
        found = str(error) or f"{len(data):,} bytes, which end before the samples"
        raise DataError(f"{name}: found {found}, expected a WAV file (RIFF … WAVE) of uncompressed samples") from error
    if channels != 1 or width > 2 or not rate:
        raise DataError(
            f"{name}: found {channels} channels of {8 * width} bits and {rate} samples per second, expected one "
            "channel of 8 or 16 bits"
        )
    if not count or len(samples) < count * width:
        found, expected = f"{len(samples):,} bytes of samples", f"{max(1, count) * width:,}"
        raise DataError(f"{name}: found {found}, expected {expected}; the file is cut off, or was never finished")
    return Recording(_decoded(samples, width), rate)


def _with_plain_header(data: bytes) -> bytes:
    """Mark PCM samples behind an extensible header as plain PCM: `wave` reads that header from Python 3.12 on only."""
    start = data.find(b"fmt ") + 8
    if data[start : start + 2] == EXTENSIBLE and data[start + 24 : start + 40] == EXTENSIBLE_PCM:
        return data[:start] + PLAIN + data[start + 2 :]
    return data


def _decoded(samples: bytes, width: int) -> Tensor:
    if width == 1:  # without sign, 128 is silence
        return torch.from_numpy((numpy.frombuffer(samples, "u1").astype("i2") - 128) * 256)
    return torch.from_numpy(numpy.frombuffer(samples, "<i2").astype("i2"))
