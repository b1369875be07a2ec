"""The one way to open, read and print what somebody else prepared: a run directory, a checkpoint, a data file.

A path may lead to anything: a FIFO that blocks for ever, a device without an end, another folder than the one that was
handed over, a sparse file that claims a terabyte. The content may be cut off, nested too deeply, or made to forge lines
on a terminal. The functions that read raise OSError, whose `strerror` says what was found and what was expected. They
never wait for a file.
"""

import errno
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

MAX_DEPTH = 100  # of nested values and of nested folders
MAX_ENTRIES = 1_000_000  # names that one walk visits
_PIECE = 1 << 20  # bytes; `read` allocates what it is asked for
LONGEST_LINE = 1 << 20  # bytes; a record of a run has less than 10 kB
_SPARSE_FROM = 1 << 30  # bytes; a larger file that is almost all holes is refused, however much may be read
_TOO_DEEP = f"not JSON as runs write it (values are nested more than {MAX_DEPTH} levels deep)"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnusableFileError(OSError):
    """A file of another kind, size or content than expected. `strerror` is the reason without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))

    def __str__(self) -> str:
        return f"{plain(self.filename)}: {self.strerror}"


# Files and folders.


def open_regular(path: Path, limit_bytes: int, *, below: Path | None = None) -> BufferedReader:
    """Open a regular file of at most `limit_bytes` for reading.

    `below` is a folder above `path`: no link in it is followed. Without `below`, links are followed to a regular file.
    """
    try:
        with _open_parent(path, below) as folder:
            name = path if folder is None else path.name
            follow = folder is None
            _check(
                path, os.stat(name, dir_fd=folder, follow_symlinks=follow), limit_bytes
            )  # opening can change a device
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
            file = os.fdopen(os.open(name, flags, dir_fd=folder), "rb")
    except UnusableFileError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except ValueError as error:  # a NUL, or a character that no name can have
        raise UnusableFileError(path, f"is no path ({error})") from error
    try:
        _check(path, os.fstat(file.fileno()), limit_bytes)
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def _open_parent(path: Path, below: Path | None) -> Iterator[int | None]:
    """Yield a descriptor of the folder that `path` is in, reached from `below` without a link; None without `below`."""
    if below is None:
        yield None
        return
    parts = path.relative_to(below).parts[:-1]
    if ".." in path.parts[len(below.parts) :]:
        raise UnusableFileError(path, f"found .. in it, expected a path below {below}")
    here = os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            _check_folder(path, part, here)
            outer, here = here, os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(outer)
        yield here
    finally:
        os.close(here)


def _check_folder(path: Path, part: str, parent: int) -> None:
    mode = os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode):
        raise UnusableFileError(path, f"{plain(part)} in it is {kind_of(mode)}, expected a folder")


def kind_of(mode: int) -> str:
    """Return what a `st_mode` stands for, in words such as "a FIFO"."""
    return _KINDS.get(stat.S_IFMT(mode), "a file")


def _check_kind(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnusableFileError(path, f"is {kind_of(found.st_mode)}, expected a regular file")


def _check(path: Path, found: os.stat_result, limit_bytes: int) -> None:
    _check_kind(path, found)
    if found.st_size > limit_bytes:
        raise UnusableFileError(path, f"found {found.st_size:,} bytes, expected at most {limit_bytes:,}")
    on_disk = found.st_blocks * 512
    if found.st_size > _SPARSE_FROM and on_disk < found.st_size // 1000:
        raise UnusableFileError(path, f"found {found.st_size:,} bytes of which {on_disk:,} are on disk, the rest holes")


def no_link(path: str, flags: int) -> int:
    """Open a file for `open(…, opener=no_link)`, which then writes through no link and waits for no FIFO."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a FIFO that nobody reads, or a socket
            _check_kind(Path(path), os.lstat(path))
        raise
    try:
        _check_kind(Path(path), os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: Path, limit_bytes: int, *, below: Path | None = None) -> bytes:
    """Return the content of a regular file of at most `limit_bytes`. `below`: see `open_regular`."""
    with open_regular(path, limit_bytes, below=below) as file:
        content = at_most(file, limit_bytes)
    if content is None:
        raise UnusableFileError(path, f"found more bytes than it says, expected at most {limit_bytes:,}")
    return content


def at_most(file: IO[bytes], limit_bytes: int) -> bytes | None:
    """Return what is left to read, or None if that is more than `limit_bytes`. Takes memory for what there is only."""
    content = bytearray()
    while piece := file.read(min(_PIECE, limit_bytes + 1 - len(content))):  # None: it would have to wait
        content += piece
        if len(content) > limit_bytes:
            return None
    return bytes(content)


def read_text(path: Path, limit_bytes: int, *, below: Path | None = None, errors: str = "strict") -> str:
    """Return the text of a file, without a byte order mark. `errors` says what becomes of bytes that are not UTF-8."""
    try:
        return read_bytes(path, limit_bytes, below=below).decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise UnusableFileError(path, f"found no UTF-8 at byte {error.start:,}, expected text") from error


def read_json(path: Path, limit_bytes: int, *, below: Path | None = None) -> Any:
    """Return the value of a JSON file: see `json_value`."""
    try:
        return json_value(read_text(path, limit_bytes, below=below))
    except ValueError as error:
        raise UnusableFileError(path, str(error)) from error


def read_json_object(path: Path, limit_bytes: int, *, below: Path | None = None) -> dict[str, Any]:
    """Return the object of a JSON file that holds one: see `json_value`."""
    value = read_json(path, limit_bytes, below=below)
    if not isinstance(value, dict):
        raise UnusableFileError(path, f"found a JSON {type(value).__name__}, expected an object")
    return value


def lines(path: Path, limit_bytes: int, *, below: Path | None = None) -> Iterator[str]:
    """Yield the lines of a text file, one at a time. Bytes that are not UTF-8 become U+FFFD; a long line is divided."""
    with open_regular(path, limit_bytes, below=below) as file:
        encoding, rest = "utf-8-sig", limit_bytes
        while rest > 0 and (line := file.readline(min(LONGEST_LINE, rest))):
            yield line.decode(encoding, "replace").rstrip("\r\n")
            encoding, rest = "utf-8", rest - len(line)


def walk(top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield every folder below `top` with the names of its folders, which the caller may remove or sort, and files.

    No link is followed: one to a folder is among the files. A folder that cannot be read is left out, and so is what is
    more than MAX_DEPTH folders deep. Raises UnusableFileError beyond MAX_ENTRIES names.
    """
    entries = 0
    for name, folders, files in os.walk(top):
        here = Path(name)
        links = [each for each in folders if (here / each).is_symlink()]
        folders[:] = [each for each in folders if each not in links]
        entries += len(folders) + len(links) + len(files)
        if entries > MAX_ENTRIES:
            raise UnusableFileError(top, f"holds more than {MAX_ENTRIES:,} files and folders; name a folder in it")
        if len(here.parts) - len(top.parts) >= MAX_DEPTH:
            folders.clear()
        yield here, folders, [*files, *links]


# Values.


def json_value(text: str) -> Any:
    """Parse JSON. A number that no float can hold, an infinity or a NaN becomes None, as in what runs write.

    Texts may hold anything, also halves of characters: a run records the names of folders, which may be any bytes.
    Raises ValueError, in words, for a key that is there twice and for values nested more than MAX_DEPTH deep.

    Examples:
        >>> json_value('{"step": 3, "loss": 1e-2, "norm": 1e999}')
        {'step': 3, 'loss': 0.01, 'norm': None}
    """
    try:
        value = json.loads(text, parse_float=_float, parse_int=_int, parse_constant=_float, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    _check_depth(value)
    return value


def _float(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _int(text: str) -> int | None:
    return int(text) if len(text) < 300 or _float(text) is not None else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"not JSON as runs write it (the key {plain(repr(twice), 80)} is there twice)")
    return found


def _check_depth(value: Any) -> None:
    """Raise ValueError for deep nesting. The walk goes level by level, since recursion has its own limit."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def number(value: object) -> float | None:
    """Return `value` as a float, or None unless it is a number whose squares and sums are finite too.

    Examples:
        >>> number(3), number(10**400), number(float("nan")), number(True), number("3")
        (3.0, None, None, None, None)
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < 1e150 else None


# Words.


def plain(value: object, limit: int | None = None) -> str:
    r"""Return `value` as one line of printable characters: it may hold escapes, line breaks and reversed text.

    `limit`: the number of characters that are shown at most.

    Examples:
        >>> plain("accuracy\x1b[2J\n12 ranks")
        'accuracy [2J 12 ranks'
    """
    text = str(value)
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - 1]}…"
    return text if text.isprintable() else " ".join("".join(c if c.isprintable() else " " for c in text).split())
