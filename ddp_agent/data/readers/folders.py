"""One walk over folders of samples: the names that count, each file once, in an order that every machine shares."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddp_agent.errors import DataError

# Left behind by macOS, Windows, NAS systems and file systems, beside names that begin with a dot.
_OF_SYSTEMS = frozenset(
    (
        "__macosx",
        "thumbs.db",
        "desktop.ini",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "lost+found",
        "icon\r",
        "system volume information",
        "__pycache__",
    )
)
_SHOWN = 8


def is_hidden(name: str) -> bool:
    """Return True for a name that is no sample and no class: hidden on POSIX, or left behind by a system."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def shown(name: str) -> str:
    """Return a file's name as text that any file and terminal can hold. Bytes that are no UTF-8 are escaped.

    One text has one form: macOS decomposes letters with accents, and other systems do not.
    """
    text = unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def contents(folder: Path) -> str:
    """Return a few words on the content of a folder, for a message that expects something else there."""
    try:
        names = [f"{shown(entry.name)}{'/' * _is_folder(entry)}" for entry in _entries(folder)]
    except DataError:
        return "no readable folder" if folder.exists() else "no such folder"
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"only {', '.join(names[:_SHOWN])}{more}" if names else "an empty folder"


@dataclass(frozen=True, slots=True)
class Sample:
    """A file of samples, and the size that it had during the walk."""

    path: Path
    size: int


_Identity = tuple[int, ...]  # Device and inode. Some network file systems repeat these, so size and time count as well.


class Walk:
    """A walk over class folders. Files with one of the `suffixes`, in any case, are samples; the rest is counted.

    Names of the file system's order or of the locale have no influence. Links are followed, as people lay out large
    data by links. Nothing that is not a regular file is opened, and a file that is reached twice is one sample. Raises
    DataError for a folder that cannot be read.
    """

    def __init__(self, suffixes: frozenset[str]) -> None:
        self._suffixes = suffixes
        self._passed_over: Counter[str] = Counter()
        self._found: dict[_Identity, Path] = {}
        self._again = 0

    def classes(self, folder: Path) -> dict[str, Path]:
        """Return the class folders in `folder` by their names, sorted by these. Samples beside them are counted."""
        found: dict[str, Path] = {}
        for entry in _entries(folder):
            if not _is_folder(entry):
                if _suffix(entry.name) in self._suffixes:
                    self._passed_over["outside the class folders"] += 1
            elif (name := shown(entry.name)) in found:
                raise DataError(f"{shown(str(folder))}: found two folders called {name}, expected one per class")
            else:
                found[name] = Path(entry.path)
        return dict(sorted(found.items()))

    def samples(self, folder: Path, *, nested: bool = True) -> list[Sample]:
        """Return the samples in a class folder, those of `nested` folders too, sorted by folder and name.

        Raises DataError for a file that has another class already.
        """
        found: list[tuple[str, str, Sample]] = []
        folders, entered = [(str(folder), folder)], set()
        while folders:
            name, current = folders.pop()
            status = current.stat()
            if (status.st_dev, status.st_ino) in entered:  # a link to a folder above, or to one that was read already
                continue
            entered.add((status.st_dev, status.st_ino))
            for entry in _entries(current):
                if _is_folder(entry):
                    if nested:
                        folders.append((entry.path, Path(entry.path)))
                    else:
                        self._passed_over["in deeper folders"] += 1
                elif (sample := self._sample(entry, folder)) is not None:
                    found.append((name, entry.name, sample))
        return [sample for *_, sample in sorted(found, key=lambda each: each[:2])]

    def _sample(self, entry: "os.DirEntry[str]", folder: Path) -> Sample | None:
        path, suffix = Path(entry.path), _suffix(entry.name)
        if suffix not in self._suffixes:
            self._passed_over[shown(suffix) or "without an extension"] += 1
            return None
        try:
            status = entry.stat()
        except OSError:
            self._passed_over["links to nothing"] += 1
            return None
        if not stat.S_ISREG(status.st_mode):
            self._passed_over["no regular files"] += 1
            return None
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        first = self._found.setdefault(identity, path)
        if first == path:
            return Sample(path, status.st_size)
        if not first.is_relative_to(folder):
            raise DataError(
                f"{shown(str(path))}: found the same file as {shown(str(first))}, expected each file in one class; "
                "remove the link"
            )
        self._again += 1
        return None

    def remarks(self) -> Iterator[str]:
        """Yield sentences on the files that are no samples, for the log."""
        if self._passed_over:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self._passed_over.most_common(_SHOWN))
            known = " ".join(sorted(self._suffixes))
            yield f"passed over {self._passed_over.total():,} files and folders: {kinds} (samples end in {known})"
        if self._again:
            yield f"passed over {self._again:,} links to files that are samples already"

    def shared_with(self, other: "Walk") -> int:
        """Return the number of files that are samples of `other`, too."""
        return len(self._found.keys() & other._found.keys())


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted((each for each in entries if not is_hidden(each.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{shown(str(folder))}: found {error.strerror}, expected a folder of samples") from error
