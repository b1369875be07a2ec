"""Zip files of many small files, as GitHub gives out a repository's."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ddp_agent.errors import DataError

LARGEST_BYTES = 64 << 20  # of one file: what a header claims is not unpacked without bound


def members(path: Path, folder: str) -> Iterator[tuple[str, bytes]]:
    """The files of `folder`, which may lie below one other, by their names in it, in order; hidden ones are left out.

    Raises DataError for a file that is no zip file, or damaged, or holds a name twice.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name, member in sorted(_inside(archive, folder, path).items()):
                if member.file_size > LARGEST_BYTES:
                    raise DataError(f"{path}: {name}: found {member.file_size:,} bytes, expected a small file")
                yield name, archive.read(member)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # the last: encrypted, unknown
        raise DataError(f"{path}: found {error}, expected a whole zip file") from error


def _inside(archive: zipfile.ZipFile, folder: str, path: Path) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        parts = PurePosixPath(member.filename).parts
        depth = next((depth for depth in (0, 1) if parts[depth : depth + 1] == (folder,)), None)
        if depth is None or member.is_dir() or parts[-1].startswith("."):
            continue
        name = "/".join(parts[depth + 1 :])
        if name in found:
            raise DataError(f"{path}: found two files {folder}/{name}, expected one")
        found[name] = member
    return found


def content_sha256(path: Path, folder: str) -> str:
    """Of the names and contents in `folder`: GitHub may pack the same files otherwise from one day to the next."""
    digest = hashlib.sha256()
    try:
        for name, data in members(path, folder):
            digest.update(f"{name} {len(data)}\n".encode() + data)
    except DataError as error:
        raise OSError(str(error)) from error
    return digest.hexdigest()
