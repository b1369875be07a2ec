"""Data that somebody packed into one .npz file of NumPy, and sixteen words of the Arabic Speech Commands so packed."""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ddp_agent.data.readers.files import opened
from ddp_agent.data.readers.wav import Recording
from ddp_agent.data.readers.word_folders import PartName
from ddp_agent.errors import DataError

Arrays = dict[str, "numpy.ndarray[Any, Any]"]
Kind = tuple[type[numpy.generic], int]  # type and number of dimensions

MOST_DEFLATED = 1032  # bytes per byte of the file: deflate can do no more
READ_HEADER = {(1, 0): numpy.lib.format.read_array_header_1_0, (2, 0): numpy.lib.format.read_array_header_2_0}
_BROKEN = (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError, MemoryError)  # RuntimeError: encrypted
_BAD_HEADER = (ValueError, SyntaxError, tokenize.TokenError, LookupError, TypeError)  # raised by NumPy

WORDS_FOLDER, WORDS_NAME = "arabic_speech_commands_16x8k", "asc16_mulaw8k.npz"
WORDS = "zero,one,two,three,four,five,six,seven,eight,nine,yes,no,up,down,left,right"
PARTS: tuple[PartName, ...] = ("train", "validation", "test")  # the order of the numbers in `split`
RATE = 8000
MU = 255


def find(data_root: Path, folder: str, name: str) -> Path | None:
    """Return the path of the file `name` in `folder` or in `data_root` itself, or None."""
    return next((path for path in (data_root / folder / name, data_root / name) if path.is_file()), None)


def read_npz(path: Path, wanted: Mapping[str, Kind]) -> Arrays:
    """Return the arrays named in `wanted`, which cannot be written to. The file may hold others.

    Raises DataError for any other content. No pickle is read.
    """
    try:
        with opened(path, f"an .npz file with {', '.join(wanted)}") as file, zipfile.ZipFile(file) as archive:
            if absent := [name for name in wanted if f"{name}.npy" not in archive.namelist()]:
                raise ValueError(f"no array {', '.join(absent)}")
            return {name: _array(path, archive, name, *kind) for name, kind in wanted.items()}
    except (*_BROKEN, *_BAD_HEADER) as error:
        problem = str(error).partition("\n")[0]  # NumPy's next line tells how to unpickle what a file holds
        raise DataError(f"{path}: found {problem}, expected an .npz file with {', '.join(wanted)}") from error


def _array(path: Path, archive: zipfile.ZipFile, name: str, kind: type[numpy.generic], dimensions: int) -> Any:
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        version = numpy.lib.format.read_magic(file)
        if version not in READ_HEADER:
            raise ValueError(f"{name} in version {version} of the format")
        shape, fortran_order, dtype = READ_HEADER[version](file)
        if not numpy.issubdtype(dtype, kind) or len(shape) != dimensions or min(shape) < 0:
            found, expected = f"{dtype} of shape {shape}", f"{kind.__name__} with {dimensions} dimensions"
            raise DataError(f"{path}: {name}: found {found}, expected {expected}")
        claimed = math.prod(shape) * dtype.itemsize
        if claimed > member.file_size or member.file_size > MOST_DEFLATED * path.stat().st_size:
            raise ValueError(f"{max(claimed, member.file_size):,} bytes claimed for {name}, more than there can be")
        data = file.read(claimed)
    return numpy.frombuffer(data, dtype, math.prod(shape)).reshape(shape, order="F" if fortran_order else "C")


def require_rows(path: Path, arrays: Arrays, *names: str) -> None:
    """Raise DataError unless the arrays `names` have equally many rows, one or more."""
    counts = {name: len(arrays[name]) for name in names}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        found = ", ".join(f"{count:,} in {name}" for name, count in counts.items())
        raise DataError(f"{path}: found {found}, expected equally many, one per sample")


def require_labels(path: Path, name: str, labels: "numpy.ndarray[Any, Any]", classes: int) -> None:
    """Raise DataError unless every one of 0 to `classes` - 1 is in `labels`, and nothing else."""
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise DataError(f"{path}: {name}: found {wrong}, expected 0 to {classes - 1}")
    if absent := sorted(set(range(classes)) - set(labels.tolist())):
        raise DataError(f"{path}: {name}: found no sample of {absent[0]}, expected some of each of 0 to {classes - 1}")


@dataclass(frozen=True)
class PackedClip:
    """A recording of one word, out of a file of many."""

    samples: Tensor
    word: str
    speaker: str

    def recording(self) -> Recording:
        """Return the samples with their rate."""
        return Recording(self.samples, RATE)


def read_words(path: Path) -> dict[PartName, list[PackedClip]]:
    """Return the clips of each part (Ghandoura et al. 2021). Raise DataError for a file that is damaged or foreign."""
    integers: Kind = (numpy.integer, 1)
    wanted: dict[str, Kind] = {"audio": (numpy.uint8, 2), "label": integers, "split": integers, "speaker": integers}
    arrays = read_npz(path, wanted | {"classes": (numpy.str_, 1)})
    require_rows(path, arrays, *wanted)
    require_labels(path, "label", arrays["label"], len(arrays["classes"]))
    require_labels(path, "split", arrays["split"], len(PARTS))
    waves, words = expanded(arrays["audio"]), arrays["classes"][arrays["label"]].tolist()
    parts: dict[PartName, list[PackedClip]] = {part: [] for part in PARTS}
    for wave, word, part, speaker in zip(waves, words, arrays["split"], arrays["speaker"], strict=True):
        parts[PARTS[part]].append(PackedClip(wave, word, str(speaker)))
    return parts


def expanded(codes: "numpy.ndarray[Any, Any]") -> Tensor:
    """Return 8-bit mu-law as int16 of the same shape: sign(v) ((1 + 255)^|v| - 1) / 255, with 0..255 as v = -1..1."""
    v = numpy.arange(256) / 255 * 2 - 1
    table = numpy.sign(v) * numpy.expm1(numpy.abs(v) * numpy.log1p(MU)) / MU
    return torch.from_numpy(numpy.round(table * 32767).astype("i2")[codes])
