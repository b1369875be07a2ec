"""The IDX format of MNIST: two zero bytes, a type, the number of dimensions, their sizes, the data.

torchvision's reader takes no gzipped files and reports damage by `assert`.
"""

import math
from pathlib import Path
from typing import IO, Literal

import torch
from torch import Tensor

from ddp_agent.data.readers.files import opened, unpacked
from ddp_agent.errors import DataError

CHUNK_BYTES = 1 << 20
DIMENSIONS = {"images": 3, "labels": 1}


def read_idx(path: Path, kind: Literal["images", "labels"]) -> Tensor:
    """Return the unsigned bytes of an IDX file, plain or gzipped: images [n, height, width] or labels [n].

    Raises DataError for any other content.
    """
    with opened(path, f"an IDX file of {kind}") as raw:
        file = unpacked(raw)
        shape = _read_shape(file, path, kind)
        data = _read(file, path, math.prod(shape), f"{kind} of shape {shape}")
        if file.read(1):  # this read also makes gzip compare its checksum
            raise DataError(f"{path}: found more than the {len(data):,} bytes expected for {kind} of shape {shape}")
    return torch.frombuffer(data, dtype=torch.uint8).view(shape)


def _read_shape(file: IO[bytes], path: Path, kind: str) -> tuple[int, ...]:
    expected = _magic(kind)
    found = file.read(4)
    if found != expected:
        known = next((f"IDX {other}" for other in DIMENSIONS if found == _magic(other)), "no IDX file of bytes")
        raise DataError(f"{path}: starts with {found.hex(' ')} ({known}), expected {expected.hex(' ')} (IDX {kind})")
    sizes = _read(file, path, 4 * DIMENSIONS[kind], "the sizes in the header")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    if 0 in shape:
        raise DataError(f"{path}: found {kind} of shape {shape}, expected at least one byte")
    return shape


def _magic(kind: str) -> bytes:
    return bytes([0, 0, 0x08, DIMENSIONS[kind]])


def _read(file: IO[bytes], path: Path, count: int, what: str) -> bytearray:
    """Return exactly `count` bytes. Memory grows with the content of the file, not with the claims of its header."""
    data = bytearray()
    while len(data) < count and (chunk := file.read(min(CHUNK_BYTES, count - len(data)))):
        data += chunk
    if len(data) < count:
        raise DataError(f"{path}: found {len(data):,} bytes, expected {count:,} for {what}")
    return data
