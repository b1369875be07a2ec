"""IDX files: what is read, and what is not trusted."""

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from idx_files import idx, pixels

from ddp_agent.data.readers.idx import read_idx
from ddp_agent.errors import DataError


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_reads_back_what_was_written(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    images, labels = pixels(3, 4, 5), pixels(7)
    (tmp_path / "images").write_bytes(pack(idx(images)))
    (tmp_path / "labels").write_bytes(pack(idx(labels)))
    assert torch.equal(read_idx(tmp_path / "images", "images"), images.to(torch.uint8))
    assert torch.equal(read_idx(tmp_path / "labels", "labels"), labels.to(torch.uint8))


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


GOOD = idx(pixels(3, 4, 5))
PACKED = gzip.compress(GOOD, mtime=0)  # a test is named by its bytes
HUGE = bytes([0, 0, 8, 3]) + b"\xff" * 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with .*expected 00 00 08 03"),
        (b"\x00\x00", "starts with 00 00"),
        (GOOD[:9], "found 5 bytes, expected 12 for the sizes"),
        (GOOD[:-1], "found 59 bytes, expected 60"),
        (GOOD + b"\x00", "found more than the 60 bytes"),
        (idx(pixels(7)), r"starts with 00 00 08 01 \(IDX labels\), expected 00 00 08 03 \(IDX images\)"),
        (b"\x00\x00\x0d\x03" + GOOD[4:], r"starts with 00 00 0d 03 \(no IDX file of bytes\)"),
        (b"\x89PNG\r\n\x1a\n" + GOOD, "starts with 89 50 4e 47"),
        (idx(pixels(0, 28, 28)), r"found images of shape \(0, 28, 28\)"),
        (HUGE + b"\x00" * 100, "found 100 bytes, expected 79,228,162,458,924,105,385,300,197,375"),
        (
            gzip.compress(HUGE + b"\x00" * 100, mtime=0),
            "found 100 bytes, expected 79,228,162,458,924,105,385,300,197,375",
        ),
        (PACKED[:-20], "unreadable data .*end-of-stream"),
        (PACKED[:5], "unreadable data"),
        (flipped(PACKED, len(PACKED) // 2), "unreadable data"),
        (PACKED[:10] + b"\x07" + PACKED[11:], "unreadable data .*invalid block type"),
        (flipped(PACKED, len(PACKED) - 8), "unreadable data .*CRC"),
        (gzip.compress(b"hello", mtime=0), "starts with 68 65 6c 6c"),
    ],
)
def test_idx_refuses_what_it_cannot_trust(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "images-idx3-ubyte.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(file, "images")
    assert str(file) in str(caught.value)


def test_idx_does_not_allocate_what_a_header_claims(tmp_path: Path) -> None:
    claims = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (300_000, 32, 32))
    bomb = gzip.compress(idx(pixels(1, 2, 2)) + bytes(50_000_000))  # 50 kB that unpack to 50 MB
    for content in (claims, gzip.compress(claims), bomb):
        (tmp_path / "images").write_bytes(content)
        tracemalloc.start()
        with pytest.raises(DataError):
            read_idx(tmp_path / "images", "images")
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 4_000_000


def test_idx_names_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            read_idx(path, "labels")
