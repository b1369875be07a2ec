"""Tar archives, unpacked into one folder and within a limit of bytes."""

import lzma
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from ddp_agent.data.readers.files import opened
from ddp_agent.errors import DataError

# Raised by tarfile for damage and for compressions that it cannot read.
_BROKEN = (tarfile.TarError, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, LookupError)


def unpack(archive: Path, folder: Path, *, most_bytes: int) -> None:
    """Unpack a tar file, compressed or not, into `folder`. Files of the same names are replaced.

    Raises DataError for a damaged archive, for a member that is neither file nor folder (a link may lead anywhere),
    for a name that leads out of `folder`, and for more than `most_bytes` of content. Members before the offending one
    have been written then.
    """
    left = most_bytes
    try:
        with opened(archive, "a whole tar file") as packed, tarfile.open(fileobj=packed) as tar:
            for member in tar:
                _check(archive, member, left)
                target = folder / member.name
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                left -= member.size
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)  # it could be a link, which writing would follow
                source = tar.extractfile(member)
                assert source is not None
                with source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)
    except _BROKEN as error:
        raise DataError(f"{archive}: found {error or type(error).__name__}, expected a whole tar file") from error


def _check(archive: Path, member: tarfile.TarInfo, left: int) -> None:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        kind = "link" if member.issym() or member.islnk() else "special file"
        raise DataError(f"{archive}: found {member.name!r}, a {kind}; expected files and folders alone")
    itself = member.isdir() and PurePosixPath(member.name) == PurePosixPath(".")  # as tar writes "."
    if not (itself or stays_inside(member.name)):
        raise DataError(f"{archive}: found {member.name!r}, expected names that stay in the archive's own folder")
    if member.size > left:
        raise DataError(f"{archive}: found {member.size:,} bytes in {member.name!r}, expected at most {left:,}")


def stays_inside(name: str) -> bool:
    """Return True if `name` is a relative path, on POSIX and on Windows, that leads to a place below its start."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    return (
        bool(path.parts)
        and ".." not in (*path.parts, *windows.parts)
        and not (path.is_absolute() or windows.anchor)
        and "\0" not in name
    )
