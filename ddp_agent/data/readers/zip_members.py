"""Zip files of many small files, such as GitHub's archives of a repository."""

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ddp_agent.data.readers.files import opened
from ddp_agent.data.readers.folders import is_hidden
from ddp_agent.errors import DataError

LARGEST_BYTES = 64 << 20  # per file: a header may claim any size


def members(path: Path, folder: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files in `folder`, sorted by name, without hidden files.

    `folder` may lie below one other folder. Raises DataError for a file that is no zip file, is damaged, or has a name
    twice.
    """
    try:
        with opened(path, "a whole zip file") as file, zipfile.ZipFile(file) as archive:
            for name, member in sorted(_inside(archive, folder, path).items()):
                if member.file_size > LARGEST_BYTES:
                    raise DataError(f"{path}: {name}: found {member.file_size:,} bytes, expected a small file")
                yield name, archive.read(member)
    except (zipfile.BadZipFile, RuntimeError) as error:  # the last: encrypted, unknown
        raise DataError(f"{path}: found {error}, expected a whole zip file") from error


def _inside(archive: zipfile.ZipFile, folder: str, path: Path) -> dict[str, zipfile.ZipInfo]:
    files: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        parts = PurePosixPath(member.filename).parts
        depth = next((depth for depth in (0, 1) if parts[depth : depth + 1] == (folder,)), None)
        if depth is None or member.is_dir() or any(map(is_hidden, parts)):
            continue
        name = "/".join(parts[depth + 1 :])
        if name in files:
            raise DataError(f"{path}: found two files {folder}/{name}, expected one")
        files[name] = member
    return files


def content_sha256(path: Path, folder: str) -> str:
    """Return the hash of names and contents in `folder`. GitHub's packing of the same files may change any day.

    Raises OSError for a damaged file.
    """
    digest = hashlib.sha256()
    try:
        for name, data in members(path, folder):
            digest.update(f"{name} {len(data)}\n".encode() + data)
    except DataError as error:
        raise OSError(str(error)) from error
    return digest.hexdigest()
