"""The log of a run: the console and `train.log`, without secrets."""

import logging
import sys
from pathlib import Path
from typing import TextIO

from ddp_agent.config.redaction import scrubbed


class _Console(logging.StreamHandler[TextIO]):
    """Looks `sys.stdout` up at each record: a live progress bar replaces it for a while."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return prefix + scrubbed(record.getMessage())


class _File(logging.Formatter):
    """Without secrets, which an error's text or traceback may quote."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


def setup_logging(run_dir: Path, rank: int) -> None:
    """Rank 0: `train.log` and the console. Others: warnings and errors, in a file made for the first of them."""
    name = "train.log" if rank == 0 else f"train.rank{rank}.log"
    file = logging.FileHandler(run_dir / name, encoding="utf-8", delay=rank != 0)
    file.setFormatter(_File("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        handlers=[file, _Console()] if rank == 0 else [file],
        force=True,
    )
    logging.captureWarnings(True)
