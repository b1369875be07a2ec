"""The log of a run: the console and `train.log`, without secrets."""

import logging
import logging.handlers
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from ddp_agent.config.redaction import scrubbed
from ddp_agent.config.untrusted import no_link
from ddp_agent.outputs.run_files import RunFiles

FILE_ONLY = {"file_only": True}
"""`extra` of a record that is not for the console, or that is there already."""


class _Console(logging.StreamHandler[TextIO]):
    """Handler that looks `sys.stdout` up at each record: a live progress bar replaces it for a while."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.addFilter(lambda record: not getattr(record, "file_only", False))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return prefix + scrubbed(record.getMessage())


class _LogFile(logging.handlers.WatchedFileHandler):
    """Handler that loses lines where the disk is full, and says so once.

    A file that was moved away is made again, but not in another folder that took the place of the run's.
    """

    def __init__(self, path: Path, *, delay: bool) -> None:
        self._folder = path.parent.stat()
        super().__init__(path, encoding="utf-8", delay=delay, errors="backslashreplace")
        self.setFormatter(_File("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._failed = False

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=no_link)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # of opening it
            self.handleError(record)

    def reopenIfNeeded(self) -> None:  # noqa: N802 (logging's name)
        """Open the file again if it is not the one at its path."""
        with suppress(OSError):
            if os.path.samestat(self._folder, Path(self.baseFilename).parent.stat()):
                super().reopenIfNeeded()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Print the first error. The default prints a traceback for each record."""
        if not self._failed:
            self._failed = True
            reason = getattr(sys.exception(), "strerror", None) or sys.exception()
            print(f"warning: {self.baseFilename}: {reason}; the run goes on, its log lacks lines", file=sys.stderr)


class _File(logging.Formatter):
    """Formatter that removes secrets, which an error's text or traceback may quote."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


def log_to_file(logger: logging.Logger, text: str, *, traceback: bool = False) -> None:
    """Log an error that the console shows anyway, if the log has been set up."""
    if logging.getLogger().handlers:
        logger.error(text, exc_info=traceback, extra=FILE_ONLY)


def setup_logging(run_dir: Path, rank: int) -> None:
    """Log to `train.log` and the console on rank 0, elsewhere warnings and errors to a file of the rank.

    That file is created by the first of them.
    """
    file = _LogFile(RunFiles(run_dir).log(rank), delay=rank != 0)
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        handlers=[file, _Console()] if rank == 0 else [file],
        force=True,
    )
    logging.captureWarnings(True)
