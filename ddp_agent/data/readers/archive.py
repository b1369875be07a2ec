"""Archives: unpacked where they belong and nowhere else, and no larger than they may be."""

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from ddp_agent.errors import DataError

CHUNK_BYTES = 1 << 20
# What tarfile and zipfile raise for damage, and for what they cannot read: encryption, another compression.
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, ValueError, NotImplementedError, RuntimeError, LookupError),
)


@dataclass(frozen=True)
class Member:
    name: str
    kind: str  # file, folder, or what else it is
    size_bytes: int  # as the archive says
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path, *, most_bytes: int) -> None:
    """A tar, compressed or not, or a zip. Its files replace those of the same names.

    Raises DataError for damage, for a member that is no file or folder (a link may lead anywhere), whose name leads out
    of `folder`, or with which more than `most_bytes` would be written. What came before it has been written then.
    """
    try:
        with archive.open("rb") as raw:
            left = most_bytes
            for member in _zip_members(raw) if zipfile.is_zipfile(raw) else _tar_members(raw):
                _check(archive, member, left)
                left -= _write(member, folder)
    except _BROKEN as error:
        raise DataError(f"{archive}: found {error or type(error).__name__}, expected a whole tar or zip") from error


def _tar_members(raw: IO[bytes]) -> Iterator[Member]:
    raw.seek(0)
    kinds = {tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "folder"}
    with tarfile.open(fileobj=raw) as tar:
        for one in tar:
            kind = kinds.get(one.type, "link" if one.issym() or one.islnk() else "special file")
            yield Member(one.name, kind, one.size, lambda one=one: tar.extractfile(one))  # type: ignore[misc]


def _zip_members(raw: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(raw) as file:
        for one in file.infolist():
            unix = one.external_attr >> 28  # of the mode that Unix tools put there: 8 a file, 4 a folder, 0 not told
            kind = "folder" if one.is_dir() else "file" if unix in (0, 8) else "link or special file"
            yield Member(one.filename, kind, one.file_size, lambda one=one: file.open(one))  # type: ignore[misc]


def _check(archive: Path, member: Member, left: int) -> None:
    if member.kind not in ("file", "folder"):
        raise DataError(f"{archive}: found {member.name!r}, a {member.kind}; expected files and folders alone")
    itself = member.kind == "folder" and PurePosixPath(member.name) == PurePosixPath(".")  # as tar writes "."
    if not (itself or stays_inside(member.name)):
        raise DataError(f"{archive}: found {member.name!r}, expected names that stay in the archive's own folder")
    if member.size_bytes > left:
        raise DataError(f"{archive}: found {member.size_bytes:,} bytes in {member.name!r}, expected at most {left:,}")


def stays_inside(name: str) -> bool:
    """Whether a relative path with forward slashes, as anybody's system reads it, leads to a place below."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    return (
        bool(path.parts)
        and ".." not in (*path.parts, *windows.parts)
        and not (path.is_absolute() or windows.anchor)
        and "\0" not in name
    )


def _write(member: Member, folder: Path) -> int:
    target = folder / member.name
    if member.kind == "folder":
        target.mkdir(parents=True, exist_ok=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # it could be a link, which writing would follow
    written = 0
    source = member.open()
    assert source is not None
    with source, target.open("xb") as file:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)  # at most what the archive says: both readers stop there
            file.write(chunk)
    return written
