"""The standard streams of a process. What becomes of the console never decides what becomes of a run.

A reader may leave (`| head`), a terminal may vanish, a disk may be full, nobody may read a pipe, a terminal may be held
with Ctrl-S, or an encoding may lack a letter. `protect` is for processes that train: a stream that fails once is silent
from then on, and one that blocks is not waited for. `run_command` is for commands whose product is their output: a
reader that leaves ends the output quietly, and any other failure is an error.
"""

import atexit
import codecs
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from ddp_agent.config.redaction import scrubbed

PATIENCE_S = 2.0  # that `flush` waits for a reader that does not read
MOST_PENDING = 10_000  # writes for such a reader; what comes on top is dropped
LOST_OUTPUT = 3  # exit code of a command whose output could not be written, as for other data
INTERRUPTED = 130
_LEAST_COLUMNS = 20


def protect(stderr: int = 2) -> None:
    """Replace this process's standard streams by streams that neither fail nor block. A second call does nothing.

    `stderr`: the descriptor of the standard error stream.
    """
    _install(_Writer(), stderr)
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else a terminal with `stty tostop` stops a background job
    atexit.register(_flush)


def run_command(command: Callable[[], int]) -> int:
    """Run a command whose product is its output. Return its exit code, or `LOST_OUTPUT` if the output was lost."""
    _install(_Direct())
    code: int | str | None
    try:
        code = command()
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:  # argparse
        code = end.code
    _flush()
    lost = sys.stdout.lost if isinstance(sys.stdout, Stream) else None
    if lost is not None and lost.errno != errno.EPIPE:
        print(f"standard output: {lost.strerror}; the output is not complete", file=sys.stderr, flush=True)
        return LOST_OUTPUT
    return code if isinstance(code, int) else 1 if code else 0


class Stream(io.TextIOWrapper):
    """Text stream over a descriptor. Letters that its encoding lacks are written as escapes. It cannot be closed."""

    def __init__(self, descriptor: int, encoding: str, way: "_Direct | _Writer") -> None:
        self._raw, self._way = _Raw(descriptor, way), way
        # The interpreter takes a raw stream for a buffered one in its own unbuffered streams, too.
        buffer: Any = self._raw
        super().__init__(buffer, encoding, errors="backslashreplace", newline="\n", line_buffering=True)

    @property
    def lost(self) -> OSError | None:
        """The failure that ended the output."""
        return self._raw.lost

    def write(self, text: str) -> int:
        """Write `text`. In a process that trains, secrets are left out: other code prints, warns and raises as well."""
        super().write(self._way.shown(text))
        return len(text)

    def flush(self) -> None:
        """Return when everything is written, or when the reader takes too long."""
        super().flush()
        self._way.drain()

    def close(self) -> None:
        self.flush()


class _Raw(io.RawIOBase):
    """Bytes to a descriptor. After the first failure they are dropped."""

    def __init__(self, descriptor: int, way: "_Direct | _Writer") -> None:
        self.lost: OSError | None = None
        self._descriptor, self._way = descriptor, way

    def write(self, data: Any) -> int:
        content = bytes(data)
        if self.lost is None:
            self._way.put(self, content)
        return len(content)

    def write_now(self, content: bytes) -> None:
        """Write all of `content`. Called by the way."""
        try:
            while content and self.lost is None:
                try:
                    content = content[os.write(self._descriptor, content) :]
                except BlockingIOError:  # somebody made it non-blocking
                    select.select([], [self._descriptor], [])
        except (OSError, ValueError) as error:
            self.lost = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
            # What torch's C++ code and processes started from here on write there must not fail either.
            with suppress(OSError):
                _point_at_null(self._descriptor)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


class _Direct:
    """The way of a command's output: written at once, however long its reader takes."""

    def put(self, stream: _Raw, content: bytes) -> None:
        stream.write_now(content)

    def drain(self) -> None:
        pass

    def shown(self, text: str) -> str:
        """Return `text`: it is the command's product."""
        return text


class _Writer:
    """The way of a run's output: a thread writes it, in order, and training does not wait for it.

    A signal's handler may print while the main thread does, so there is no lock: `SimpleQueue` is made for that.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)  # the thread is not in the child

    def _reset(self) -> None:
        # Bytes for a stream, or a lock that is released when all before it is written.
        self._pending: SimpleQueue[tuple[_Raw, bytes] | threading.Lock] = SimpleQueue()
        self._stuck = False
        self._thread: threading.Thread | None = None

    def put(self, stream: _Raw, content: bytes) -> None:
        if self._pending.qsize() >= MOST_PENDING:
            return
        self._pending.put((stream, content))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="console", daemon=True)
            with suppress(RuntimeError):  # the interpreter is ending
                self._thread.start()

    def drain(self) -> None:
        """Return when everything is written. Wait once for a reader that does not read, until it reads again."""
        if self._thread is None or self._stuck or threading.current_thread() is self._thread:
            return
        written = threading.Lock()
        written.acquire()
        self._pending.put(written)
        self._stuck = not written.acquire(timeout=PATIENCE_S)

    def shown(self, text: str) -> str:
        """Return `text` without secrets."""
        return scrubbed(text)

    def _work(self) -> None:
        while True:
            item = self._pending.get()
            if isinstance(item, tuple):
                stream, content = item
                stream.write_now(content)
                self._stuck = False
            else:
                item.release()


def _install(way: _Direct | _Writer, stderr: int = 2) -> None:
    _open_missing()
    columns = os.environ.get("COLUMNS", "")
    if not (columns.isdecimal() and int(columns) >= _LEAST_COLUMNS):
        os.environ.pop("COLUMNS", None)  # 0 columns would show nothing
    for name, descriptor in (("stdout", 1), ("stderr", stderr)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # else it is replaced already, by this module or by a test
            setattr(sys, name, Stream(descriptor, _encoding(stream), way))


def _open_missing() -> None:
    """Open /dev/null for standard streams that are closed: the next files would get their numbers, and their output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _point_at_null(descriptor)


def _point_at_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)


def _encoding(stream: Any) -> str:
    try:
        return codecs.lookup(stream.encoding).name
    except (AttributeError, LookupError, TypeError):
        return "utf-8"


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
