"""A disk that refuses the last write of one kind."""

import builtins
import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


Write = tuple[str, str]  # the call and the file


class Disk:
    """Writes below `folder` in the order in which they happen. The one that is the `nth` equal to `refused` fails."""

    def __init__(self, folder: Path, refused: Write | None = None, nth: int = 1, error: int = errno.ENOSPC) -> None:
        self.folder, self.refused, self.nth, self.error = str(folder), refused, nth, error
        self.writes: list[Write] = []

    def write(self, call: str, path: Any) -> None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}") if path > 2 else ""
        name = os.fspath(path) if not isinstance(path, bytes) else os.fsdecode(path)
        if not name.startswith(self.folder):
            return
        write = call, _without_numbers(os.path.relpath(name, self.folder))
        self.writes.append(write)
        if write == self.refused and self.writes.count(write) == self.nth:
            raise OSError(self.error, os.strerror(self.error), name)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Patch the functions that write, in this process."""
        calls: list[tuple[Any, str, Callable[..., bool]]] = [
            (builtins, "open", lambda path, mode="r", *_, **__: any(letter in mode for letter in "wxa+")),
            (io, "open", lambda path, mode="r", *_, **__: any(letter in mode for letter in "wxa+")),
            (os, "open", lambda path, flags, *_, **__: bool(flags & _WRITING)),
            *((os, name, lambda *_, **__: True) for name in ("mkdir", "replace", "rename", "fsync", "pwrite")),
        ]
        with ExitStack() as patches:
            for owner, name, writes in calls:
                patches.enter_context(patch.object(owner, name, self._watching(getattr(owner, name), name, writes)))
            yield

    def _watching(self, original: Callable[..., Any], name: str, writes: Callable[..., bool]) -> Callable[..., Any]:
        def watching(*arguments: Any, **named: Any) -> Any:
            if writes(*arguments, **named):
                self.write(name, arguments[0])
            return original(*arguments, **named)

        return watching


def _without_numbers(name: str) -> str:
    """Return a file's name without what differs from run to run: random digits, and the time of an event file."""
    name = re.sub(r"[0-9a-f]{16}|(?<=tmp-)[0-9a-f]{8}|[0-9a-f]{8}(?=\.tmp)", "*", name)
    return re.sub(r"tfevents.*", "tfevents", name)
