"""Folders of wav files, one folder per word, with published lists of the recordings of each part.

There are two layouts. Google's Speech Commands (Warden 2018, arXiv:1804.03209) lists the recordings that are not for
training, the Arabic Speech Commands (Ghandoura et al. 2021) list all. In both, a file's name begins with the speaker:
`<speaker>_….wav`.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ddp_agent.data.readers.archive import stays_inside
from ddp_agent.data.readers.files import lines, opened, opened_text, read_text
from ddp_agent.data.readers.folders import Walk, shown
from ddp_agent.data.readers.wav import Recording, read_wav
from ddp_agent.errors import DataError

PartName = Literal["train", "validation", "test"]
WAV_BYTES = 1 << 28  # half an hour of 48 kHz stereo
LIST_BYTES = 1 << 28
SUFFIXES = frozenset({".wav"})
LISTS: dict[PartName, str] = {"validation": "validation_list.txt", "test": "testing_list.txt"}
TABLES: dict[PartName, str] = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}


@dataclass(frozen=True)
class WavClip:
    """A recording of one word in a file of its own."""

    path: Path
    word: str
    speaker: str

    def recording(self) -> Recording:
        """Return the samples. Raise DataError for a file that cannot be read."""
        name = shown(str(self.path))
        with opened(self.path, "a WAV file", WAV_BYTES) as file:
            return read_wav(file.read(), name)


Parts = dict[PartName, list[WavClip]]


def are_in(root: Path) -> bool:
    """Return True if `root` holds lists of one of the two layouts."""
    return (root / LISTS["test"]).is_file() or (root / TABLES["test"]).is_file()


def read(root: Path) -> Parts:
    """Return the clips of each part. Raise DataError for lists that are damaged or name absent files."""
    return _listed(root) if (root / LISTS["test"]).is_file() else _tabled(root)


def _listed(root: Path) -> Parts:
    """Read Google's layout: `<word>/<name>.wav` is for training unless a list names it. Folders `_…` are no words."""
    listed = {part: list(_clips(root / name, _lines(root / name))) for part, name in LISTS.items()}
    taken = {clip.path for clips in listed.values() for clip in clips}
    walk = Walk(SUFFIXES)
    folders = [folder for name, folder in walk.classes(root).items() if not name.startswith("_")]
    files = (sample.path for folder in folders for sample in walk.samples(folder, nested=False))
    return {"train": [_clip(path) for path in files if path not in taken], **listed}


def _tabled(root: Path) -> Parts:
    """Read Ghandoura's layout: tables of file and class, `dataset/<word>/<name>.wav`."""
    return {part: list(_clips(root / name, _rows(root / name))) for part, name in TABLES.items()}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    text = read_text(path, "lines of <word>/<name>.wav", LIST_BYTES)
    yield from ((number, line) for number, line in enumerate(text.splitlines(), start=1) if line)


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    expected = "lines of dataset/<word>/<name>.wav,<word>"
    with opened_text(path, expected, LIST_BYTES) as file:
        try:
            reader = csv.reader(lines(file), strict=True)
            if (header := next(reader, [])) != ["file", "class"]:
                raise ValueError(f"a first line of {','.join(header)[:80]!r}")
            for name, word in filter(None, reader):
                if PurePosixPath(name).parent.name != word:
                    raise ValueError(f"{name} of class {word} in line {reader.line_num}")
                yield reader.line_num, name
        except ValueError as error:
            raise DataError(f"{path}: found {error}, expected {expected}") from error


def _clips(path: Path, names: Iterable[tuple[int, str]]) -> Iterator[WavClip]:
    """Yield the clips that a list names. Raise DataError with the line of an absent file."""
    for line, name in names:
        relative = PurePosixPath(name)
        inside = stays_inside(name) and len(relative.parts) > 1
        if not inside or relative.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path}: line {line}: found {name!r}, expected <word>/<name>.wav beside this list")
        clip = _clip(path.parent / relative)
        if not clip.path.is_file():
            raise DataError(f"{path}: line {line}: found {name!r}, but no such file; unpack the whole archive again")
        yield clip


def _clip(path: Path) -> WavClip:
    return WavClip(path, word=shown(path.parent.name), speaker=path.name.partition("_")[0])
