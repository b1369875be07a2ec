"""Downloads by several ranks at once, checked by sha256.

torchvision's and torch.hub's downloads have no lock, no timeout, and no hash of a zip file's content.
"""

import fcntl
import hashlib
import secrets
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ddp_agent.config.untrusted import no_link
from ddp_agent.data.readers.archive import unpack
from ddp_agent.errors import DataError


@contextmanager
def in_turn(folder: Path, dataset: str) -> Iterator[None]:
    """Hold a lock on `folder`: the first rank downloads, the next ranks find the files there.

    Raises DataError for an OSError or RuntimeError of the body.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".download.lock", "a", opener=no_link) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except (OSError, RuntimeError) as error:  # no network, no space, read-only, another checksum
        raise DataError(f"{folder}: downloading {dataset} failed: {error}") from error


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Published:
    """A file of a dataset's official source."""

    name: str
    url: str
    sha256: str
    sha256_of: Callable[[Path], str] = file_sha256

    def download(self, folder: Path) -> None:
        """Download the file into `folder`. It appears under its name once it is whole.

        Raises OSError for a failed download and for content with another hash.
        """
        target = folder / self.name
        part = target.with_name(f".{self.name}.{secrets.token_hex(4)}.part")
        try:
            with urllib.request.urlopen(self.url, timeout=60) as source, part.open("xb") as file:
                shutil.copyfileobj(source, file)
            found = self.sha256_of(part)
            if found != self.sha256:
                raise OSError(f"{self.url}: found content with sha256 {found}, expected {self.sha256}")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def located(
    data_root: Path, name: str, files: Sequence[Published], *, download: bool, missing: Callable[[Path, str], DataError]
) -> Path:
    """Return the folder that holds all `files` of the dataset `name`: `data_root`/`name`, or `data_root`.

    Files are downloaded into the former. Without `download`, raises what `missing` returns for the names of the absent
    files.
    """
    own = data_root / name
    for folder in (own, data_root):
        if not _missing(folder, files):
            return folder
    if not download:
        absent = ", ".join(file.name for file in _missing(own if own.is_dir() else data_root, files))
        raise missing(own, absent) if own.is_dir() else missing(data_root, f"{absent}, and no folder {name}")
    with in_turn(own, name):
        for file in _missing(own, files):
            file.download(own)
    return own


def _missing(folder: Path, files: Sequence[Published]) -> list[Published]:
    return [file for file in files if not (folder / file.name).is_file()]


def unpacked(archive: Published, folder: Path, *, most_bytes: int) -> None:
    """Download an archive and unpack it to `folder`, unless that exists. The folder appears once it is whole.

    Raises DataError if the download or the unpacking fails, and for more than `most_bytes` of content.
    """
    with in_turn(folder.parent, folder.name):
        if folder.is_dir():
            return
        with TemporaryDirectory(dir=folder.parent) as scratch:
            archive.download(Path(scratch))
            content = Path(scratch) / "content"
            unpack(Path(scratch) / archive.name, content, most_bytes=most_bytes)
            content.rename(folder)
