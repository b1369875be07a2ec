"""The report's directory: written whole, and over nothing that is not a report's own."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from ddp_agent.report.files import json_object, text_of
from ddp_agent.report.runs import ReportError

GENERATOR = "ddp_agent.report"
INDEX = "report.json"  # says whose the directory is, and which files in it


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    """All files are on the disk before the first takes its place. Raises ReportError, with everything as it was."""
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
    for name in sorted(files, key=lambda name: name != INDEX):  # the index first: the rest is then known as ours
        os.replace(aside / name, directory / name)
    for name in stale:
        (directory / name).unlink(missing_ok=True)


def check_free(directory: Path, files: Mapping[str, bytes]) -> None:
    """Raises ReportError when a file of somebody else would be overwritten."""
    own = _own(directory)
    foreign = [name for name in files if name not in own and os.path.lexists(directory / name)]
    if foreign:
        raise ReportError(
            f"{directory}: holds {', '.join(foreign)}, not written by a report; --output chooses another directory"
        )


def _own(directory: Path) -> set[str]:
    index = json_object(text_of(directory / INDEX))
    files = index.get("files")
    if index.get("generator") != GENERATOR or not isinstance(files, list):
        return set()
    return {INDEX, *(name for name in files if isinstance(name, str) and name == os.path.basename(name))}
