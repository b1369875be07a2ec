"""Data files, opened in one way: regular, not too large, and with any of the usual encodings if they are texts."""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, TextIO, cast

from ddp_agent.config.untrusted import UnusableFileError, at_most, open_regular, plain
from ddp_agent.errors import DataError

MOST_BYTES = 1 << 40
LONGEST_LINE = 1 << 20  # characters. A packed file of some kilobytes may hold a line of gigabytes.
# UTF-32 first: its mark begins with that of UTF-16.
_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@contextmanager
def opened(path: Path, expected: str, most_bytes: int = MOST_BYTES) -> Iterator[BinaryIO]:
    """Open a data file. `expected` says what is right, for messages.

    Raises DataError for anything but a regular file of at most `most_bytes`, and if reading fails in the body.
    """
    try:
        file = open_regular(path, most_bytes)
    except UnusableFileError as error:
        raise DataError(f"{plain(path)}: {error.strerror}; it should be {expected}") from error
    except OSError as error:
        raise DataError(f"{plain(path)}: found {error.strerror}, expected {expected}") from error
    try:
        with file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{plain(path)}: found unreadable data ({plain(error)}), expected {expected}") from error


@contextmanager
def opened_text(path: Path, expected: str, most_bytes: int = MOST_BYTES) -> Iterator[TextIO]:
    """Open a text: UTF-8, or UTF-16 or UTF-32 with a byte order mark, which is no part of the text; gzipped or not.

    Line ends are kept. Raises DataError for a link that leads out of the file's folder, since any file of the user
    could pass for a text, and for content that cannot be unpacked, decoded or divided into cells in the body.
    """
    _stay_in_folder(path)
    with opened(path, expected, most_bytes) as raw:
        try:
            packed = unpacked(raw)
            encoding = _encoding(packed.read(4))
            packed.seek(0)
            yield io.TextIOWrapper(packed, encoding=encoding, newline="")
        except (UnicodeError, csv.Error) as error:
            raise DataError(f"{plain(path)}: found {plain(error)}, expected {expected}") from error


def read_text(path: Path, expected: str, most_bytes: int, *, otherwise: str = "utf-8") -> str:
    """Return a text of at most `most_bytes` bytes: see `opened_text`. `otherwise` decodes what is no UTF-8.

    Raises DataError also for a character of number 0, which no text has.
    """
    _stay_in_folder(path)
    with opened(path, expected, most_bytes) as raw:
        data = at_most(unpacked(raw), most_bytes)
    if data is None:
        raise DataError(f"{plain(path)}: found more than {most_bytes:,} bytes, expected {expected}")
    try:
        text = data.decode(_encoding(data[:4]))
    except UnicodeError as error:
        try:
            text = data.decode(otherwise)
        except UnicodeError:
            raise DataError(f"{plain(path)}: found {plain(error)}, expected {expected}") from error
    if (place := text.find("\0")) >= 0:
        raise DataError(f"{plain(path)}: found a zero byte as character {place + 1:,}, expected {expected}")
    return text


def lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a text with their ends. Raise csv.Error for one of more than `LONGEST_LINE` characters."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise csv.Error(f"a line of more than {LONGEST_LINE:,} characters")
        yield line


def unpacked(raw: BinaryIO) -> IO[bytes]:
    """Return the unpacked stream. The first bytes decide if a file is gzipped, since names may be wrong."""
    gzipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if gzipped else raw


def _encoding(start: bytes) -> str:
    return next((name for mark, name in _ENCODINGS.items() if start.startswith(mark)), "utf-8")


def _stay_in_folder(path: Path) -> None:
    try:
        target, folder = path.resolve(strict=True), path.parent.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # missing, no path, or a link to itself, which opening explains
        return
    if not target.is_relative_to(folder):
        raise DataError(
            f"{plain(path)}: found a link to {plain(target)}, expected a file in this folder or below it; copy it, "
            "or name the folder that it is in"
        )
