"""The log of a run: the console and `train.log`, without secrets."""

import logging
import sys
from pathlib import Path
from typing import TextIO

from ddp_agent.config.redaction import scrubbed
from ddp_agent.outputs.run_files import RunFiles


class _Console(logging.StreamHandler[TextIO]):
    """Handler that looks `sys.stdout` up at each record: a live progress bar replaces it for a while."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return prefix + scrubbed(record.getMessage())


class _File(logging.Formatter):
    """Formatter that removes secrets, which an error's text or traceback may quote."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


def setup_logging(run_dir: Path, rank: int) -> None:
    """Log to `train.log` and the console on rank 0, elsewhere warnings and errors to a file of the rank.

    That file is created by the first of them.
    """
    file = logging.FileHandler(RunFiles(run_dir).log(rank), encoding="utf-8", delay=rank != 0)
    file.setFormatter(_File("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        handlers=[file, _Console()] if rank == 0 else [file],
        force=True,
    )
    logging.captureWarnings(True)
