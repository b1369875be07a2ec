"""The folder that a report is written to: as a whole or not at all, and never over files of others."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from ddp_agent.report.runs.files import json_object, text_of
from ddp_agent.report.runs.run import ReportError

GENERATOR = "ddp_agent.report"
INDEX = "report.json"  # shows that a report owns the folder, and which files of it


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` by name, and remove files of an earlier report.

    All contents are on the disk before the first file is replaced. Raises ReportError with the folder unchanged.
    """
    check_free(directory, files)
    new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        aside = Path(mkdtemp(prefix=".new-", dir=directory))
        try:
            _replace(directory, aside, files)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if new:
            with suppress(OSError):
                directory.rmdir()
        reason = error.strerror or error
        raise ReportError(f"{directory}: cannot be written ({reason}); --output chooses another directory") from error


def _replace(directory: Path, aside: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (aside / name).write_bytes(content)
    stale = _own(directory) - set(files)
    for name in sorted(files, key=lambda name: name != INDEX):  # the index first: it then owns the rest
        os.replace(aside / name, directory / name)
    for name in stale:
        (directory / name).unlink(missing_ok=True)


def check_free(directory: Path, files: Mapping[str, bytes]) -> None:
    """Raise ReportError if a file that no report wrote would be overwritten."""
    own = _own(directory)
    foreign = [name for name in files if name not in own and os.path.lexists(directory / name)]
    if foreign:
        raise ReportError(
            f"{directory}: holds {', '.join(foreign)}, not written by a report; --output chooses another directory"
        )


def _own(directory: Path) -> set[str]:
    index = json_object(text_of(directory / INDEX, below=directory))
    files = index.get("files")
    if index.get("generator") != GENERATOR or not isinstance(files, list):
        return set()
    return {INDEX, *(name for name in files if isinstance(name, str) and name == os.path.basename(name))}
