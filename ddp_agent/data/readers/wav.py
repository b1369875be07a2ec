"""Recordings in RIFF WAVE files: uncompressed, 8 to 32 bits or floating-point, whose channels are mixed into one.

Python's `wave` refuses what most programs read: floating-point samples, sizes that a pipe could not know, and chunks of
odd length without their padding.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from ddp_agent.errors import DataError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
# An extensible header names its format by 16 bytes, of which the first two are the plain format.
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
# ffmpeg and sox write sizes like these, or 0, into a pipe, where they cannot go back and correct them.
UNKNOWN_SIZE = 0x7FFF0000
LOUDEST = 8.0  # Peaks of floating-point samples may pass 1. Far more means another scale.
EXPECTED = "a WAV file (RIFF … WAVE) of uncompressed samples"


@dataclass(frozen=True)
class Recording:
    """The samples of one channel."""

    samples: Tensor
    """int16, full scale. Of 24 and 32 bits, the upper 16 are kept; samples of 8 bits are multiplied by 256."""
    rate: int
    """Samples per second."""


@dataclass(frozen=True)
class _Format:
    code: int
    channels: int
    rate: int
    bits: int

    @property
    def bytes(self) -> int:
        return -(-self.bits // 8)


def read_wav(data: bytes, name: str) -> Recording:
    """Return the recording in `data`, the content of the file `name`. Raise DataError for any other content.

    Channels are averaged.
    """
    try:
        described, samples = _chunks(data)
    except _BadFileError as error:
        raise DataError(f"{name}: found {error}, expected {EXPECTED}") from error
    decode = DECODERS.get((described.code, described.bytes))
    if decode is None or not described.channels or not described.rate:
        raise DataError(
            f"{name}: found {described.channels} channels of {described.bits} bits and {described.rate} samples per "
            f"second in format {described.code}, expected channels of 8 to 32 bits or of floating-point numbers"
        )
    frame = described.channels * described.bytes
    values = decode(samples[: len(samples) // frame * frame]).reshape(-1, described.channels)
    if not len(values):
        raise DataError(
            f"{name}: found 0 bytes of samples, expected {frame}; the file is cut off, or was never finished"
        )
    if values.dtype != numpy.int16:
        peak = numpy.abs(values).max()
        if not peak <= LOUDEST * 32768:  # NaN, too
            raise DataError(f"{name}: found samples up to {peak / 32768:g}, expected numbers from -1 to 1")
    if described.channels > 1:
        values = values.mean(1, dtype="f8")
    return Recording(_as_int16(values.reshape(-1)), described.rate)


class _BadFileError(Exception):
    pass


def _chunks(data: bytes) -> tuple[_Format, bytes]:
    """Return the format and the bytes of the samples."""
    if len(data) < 12:
        raise _BadFileError(f"{len(data):,} bytes, which end before the samples")
    if data[:4] not in (b"RIFF", b"RF64"):
        raise _BadFileError("file does not start with RIFF id")
    if data[8:12] != b"WAVE":
        raise _BadFileError("not a WAVE file")
    described, place = None, 12
    while place + 8 <= len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        start = place + 8
        if kind == b"fmt " and start + size > len(data):
            break
        if kind == b"fmt ":
            described = _format(data[start : start + size])
        elif kind == b"data":
            if described is None:
                raise _BadFileError("data chunk before fmt chunk")
            return described, _samples(data, start, size)
        place = _next_chunk(data, start + size)
    raise _BadFileError(f"{len(data):,} bytes, which end before the samples")


def _next_chunk(data: bytes, end: int) -> int:
    """Return the start of the chunk behind one that ends at `end`. Chunks begin at even places, or should."""
    padded = end + end % 2
    known = (b"fmt ", b"data", b"LIST", b"fact", b"cue ", b"id3 ", b"bext", b"PEAK", b"JUNK")
    return end if data[padded : padded + 4] not in known and data[end : end + 4] in known else padded


def _samples(data: bytes, start: int, size: int) -> bytes:
    left = len(data) - start
    if size >= UNKNOWN_SIZE or (size == 0 and left > 8):
        return data[start:]
    if left < size:
        raise _BadFileError(f"{left:,} bytes of samples, expected {size:,}; the file is cut off, or was never finished")
    return data[start : start + size]


def _format(header: bytes) -> _Format:
    if len(header) < 16:
        raise _BadFileError(f"a fmt chunk of {len(header)} bytes, expected 16 or more")
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", header[:16])
    if code == EXTENSIBLE:
        code = int.from_bytes(header[24:26], "little") if header[26:40] == GUID_TAIL else -1
    if code not in (PCM, FLOAT):
        raise _BadFileError(f"unknown format: {code}" if code >= 0 else "unknown extended format")
    return _Format(code, channels, rate, bits)


def _as_int16(values: Any) -> Tensor:
    if values.dtype != numpy.int16:
        values = numpy.clip(numpy.round(values), -32768, 32767).astype("i2")
    return torch.from_numpy(values)


# Samples as int16, or as floats in which 32768 is full scale.


def _eight_bits(data: bytes) -> Any:
    return (numpy.frombuffer(data, "u1").astype("i2") - 128) * 256  # without sign, 128 is silence


def _sixteen_bits(data: bytes) -> Any:
    return numpy.frombuffer(data, "<i2").astype("i2")


def _twenty_four_bits(data: bytes) -> Any:
    lowest, middle, upper = numpy.frombuffer(data, "u1").reshape(-1, 3).astype("i4").T
    return (lowest + (middle << 8) + (upper.astype("i1").astype("i4") << 16)) / 2.0**8


def _thirty_two_bits(data: bytes) -> Any:
    return numpy.frombuffer(data, "<i4") / 2.0**16


def _floats(kind: str) -> Callable[[bytes], Any]:
    return lambda data: numpy.frombuffer(data, kind).astype("f8") * 2.0**15


DECODERS: dict[tuple[int, int], Callable[[bytes], Any]] = {
    (PCM, 1): _eight_bits,
    (PCM, 2): _sixteen_bits,
    (PCM, 3): _twenty_four_bits,
    (PCM, 4): _thirty_two_bits,
    (FLOAT, 4): _floats("<f4"),
    (FLOAT, 8): _floats("<f8"),
}
"""Functions by format and bytes per sample."""
