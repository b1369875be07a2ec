"""WAV files for tests."""

import struct

import torch
from torch import Tensor

PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")


def tone(samples: int = 400, seed: int = 0) -> Tensor:
    """Return noise, int16."""
    return torch.randint(-9000, 9000, (samples,), generator=torch.Generator().manual_seed(seed)).short()


def chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def form(rate: int = 8000, bits: int = 16, channels: int = 1, code: int = 1) -> bytes:
    block = channels * bits // 8
    described = struct.pack("<HHIIHH", code, channels, rate, rate * block, block, bits)
    if code == 0xFFFE:
        described += struct.pack("<HHI", 22, bits, 0) + PCM_GUID
    return chunk(b"fmt ", described)


def wav(samples: Tensor, rate: int = 8000, bits: int = 16, channels: int = 1, code: int = 1) -> bytes:
    """Return a file of 16 bits with the int16 `samples`, or a file of 8 bits with their upper halves."""
    data = (
        samples.numpy().astype("<i2").tobytes()
        if bits == 16
        else ((samples >> 8) + 128).to(torch.uint8).numpy().tobytes()
    )
    return riff(form(rate, bits, channels, code), chunk(b"data", data))
