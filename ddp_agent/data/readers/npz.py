"""Arrays in NumPy's .npz files."""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy

from ddp_agent.errors import DataError

Arrays = dict[str, numpy.ndarray[Any, Any]]

_BROKEN = (zipfile.BadZipFile, zlib.error, SyntaxError, tokenize.TokenError)  # the last two: of a header, by NumPy
MOST_PACKED = 1032  # bytes of one: as much as deflate can
READ_HEADER = {(1, 0): numpy.lib.format.read_array_header_1_0, (2, 0): numpy.lib.format.read_array_header_2_0}


def read_npz(path: Path, wanted: Mapping[str, tuple[type[numpy.generic], int]]) -> Arrays:
    """The arrays with these names, each of a type and a number of dimensions; a file may hold others.

    Raises DataError with what was found instead. Nothing that could be code is read.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("no zip file" if path.is_file() else "no such file")
        with numpy.load(path, allow_pickle=False) as file:
            if absent := [name for name in wanted if name not in file.files]:
                raise ValueError(f"no array {', '.join(absent)}")
            _require_sizes(path, wanted)
            found = {name: _plain(file, name) for name in wanted}
    except (*_BROKEN, OSError, ValueError, KeyError, EOFError, MemoryError) as error:
        raise DataError(f"{path}: found {error}, expected an .npz file with {', '.join(wanted)}") from error
    for name, (kind, dimensions) in wanted.items():
        array = found[name]
        if not numpy.issubdtype(array.dtype, kind) or array.ndim != dimensions:
            raise DataError(
                f"{path}: {name}: found {array.dtype} of shape {array.shape}, expected {kind.__name__} with "
                f"{dimensions} dimensions"
            )
    return found


def _require_sizes(path: Path, names: Iterable[str]) -> None:
    """NumPy takes memory for what a header says before it reads what is there."""
    with zipfile.ZipFile(path) as archive:
        for name in names:
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as file:
                version = numpy.lib.format.read_magic(file)
                header = READ_HEADER.get(version)
                if header is None:
                    raise ValueError(f"{name} in version {version} of the format")
                shape, _, dtype = header(file)
            claimed = math.prod(shape) * dtype.itemsize
            if claimed > member.file_size or member.file_size > MOST_PACKED * path.stat().st_size:
                raise ValueError(f"{max(claimed, member.file_size):,} bytes claimed for {name}, more than there can be")


def _plain(file: Any, name: str) -> "numpy.ndarray[Any, Any]":
    wrong = f"no numbers or text in {name}, or not all of them"  # NumPy's own text tells how to run what a file holds
    try:
        array = file[name]
    except (ValueError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(wrong) from error
    if not isinstance(array, numpy.ndarray):  # something else in the zip file
        raise ValueError(wrong)
    return array


def require_rows(path: Path, arrays: Arrays, *names: str) -> None:
    """Raises DataError unless these arrays have equally many rows, one or more."""
    counts = {name: len(arrays[name]) for name in names}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        found = ", ".join(f"{count:,} in {name}" for name, count in counts.items())
        raise DataError(f"{path}: found {found}, expected equally many, one of each a sample")


def require_labels(path: Path, name: str, labels: numpy.ndarray[Any, Any], classes: int) -> None:
    """Raises DataError unless `labels` are 0 to `classes` - 1, with every one of them there."""
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise DataError(f"{path}: {name}: found {wrong}, expected 0 to {classes - 1}")
    if absent := sorted(set(range(classes)) - set(labels.tolist())):
        raise DataError(f"{path}: {name}: found no sample of {absent[0]}, expected some of each of 0 to {classes - 1}")
