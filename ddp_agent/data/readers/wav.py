"""Recordings in RIFF WAVE files: uncompressed, one channel, 8 or 16 bits."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from ddp_agent.errors import DataError

PCM, EXTENSIBLE = 1, 0xFFFE
# An extensible header names its format by a number of 16 bytes, of which the first two are the old format.
EXTENSIBLE_PCM = struct.pack("<H", PCM) + bytes.fromhex("000000001000800000aa00389b71")
FORMATS = {3: "floating-point", 6: "A-law", 7: "mu-law", 17: "ADPCM", 85: "MP3"}
CHUNK = struct.Struct("<4sI")
FORMAT = struct.Struct("<HHIIHH")


@dataclass(frozen=True)
class Recording:
    samples: Tensor
    """int16, full scale; those of 8-bit files times 256."""
    rate: int
    """Samples a second."""


def read_wav(data: bytes, name: str) -> Recording:
    """What the file called `name` holds. Raises DataError with what was found and expected, for anything else."""
    chunks = dict(_chunks(data, name))
    if b"fmt " not in chunks or b"data" not in chunks:
        absent = "format" if b"fmt " not in chunks else "samples"
        raise DataError(f"{name}: found no chunk with its {absent}, expected one of a WAV file")
    rate, bits = _format(chunks[b"fmt "], name)
    samples = chunks[b"data"]
    if not samples or len(samples) % (bits // 8):
        raise DataError(f"{name}: found {len(samples)} bytes of samples, expected one or more of {bits} bits")
    return Recording(_decoded(samples, bits), rate)


def _chunks(data: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each part of the file; the first of a kind counts."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise DataError(f"{name}: starts with {data[:12].hex(' ') or 'nothing'}, expected a WAV file (RIFF … WAVE)")
    start, seen = 12, set[bytes]()
    while start + CHUNK.size <= len(data):
        kind, size = CHUNK.unpack_from(data, start)
        start += CHUNK.size
        if start + size > len(data):
            raise DataError(
                f"{name}: found {len(data) - start:,} bytes, expected {size:,} in the chunk {kind!r}; the file is cut "
                "off, or was never finished"
            )
        if kind not in seen:
            yield kind, data[start : start + size]
        seen.add(kind)
        start += size + size % 2


def _format(chunk: bytes, name: str) -> tuple[int, int]:
    """Rate and bits of a sample."""
    if len(chunk) < FORMAT.size:
        raise DataError(f"{name}: found {len(chunk)} bytes that describe the format, expected {FORMAT.size} or more")
    code, channels, rate, _, block, bits = FORMAT.unpack_from(chunk)
    if code == EXTENSIBLE and chunk[24:40] == EXTENSIBLE_PCM:
        code = PCM
    if code != PCM:
        found = f"{FORMATS.get(code, f'format {code:#x}')} samples"
    elif channels != 1:
        found = f"{channels} channels"
    elif bits not in (8, 16) or block != bits // 8:
        found = f"{bits} bits a sample in {block} bytes"
    elif rate == 0:
        found = "0 samples a second"
    else:
        return rate, bits
    raise DataError(f"{name}: found {found}, expected uncompressed samples of one channel and 8 or 16 bits")


def _decoded(samples: bytes, bits: int) -> Tensor:
    if bits == 8:  # without sign, 128 is silence
        return torch.from_numpy((numpy.frombuffer(samples, "u1").astype("i2") - 128) * 256)
    return torch.from_numpy(numpy.frombuffer(samples, "<i2").astype("i2"))
