"""Names of a sweep's runs in TensorBoard, which calls a run by its path below --logdir: `0/tensorboard` says nothing.

So `<sweep>/tensorboard/` has a link to each job's event files, named by the job's overrides. The files stay in the
job's directory. Without links (a file system that has none) TensorBoard still shows the jobs by their numbers.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

FOLDER = "tensorboard"
_LONGEST = 150  # bytes of a name: file systems end at 255, and TensorBoard's list of runs is narrow
_UNFIT = re.compile(r"[^\w=.,+:@%()\[\]{} -]")  # slashes would be folders, other characters break the list


def logdir(sweep_dir: Path) -> Path:
    """Return the folder to name in `tensorboard --logdir`: the one with the links if there is one."""
    links = sweep_dir / FOLDER
    return links if links.is_dir() and not links.is_symlink() else sweep_dir


def link(run_dir: Path, sweep_dir: Path, overrides: Sequence[str]) -> None:
    """Link the event files of a job under its overrides, without secrets. A job that has its link keeps it."""
    target = os.path.relpath(run_dir / FOLDER, sweep_dir / FOLDER)
    with suppress(OSError):
        (sweep_dir / FOLDER).mkdir(exist_ok=True)
        folder = os.open(sweep_dir / FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for name in (_name(overrides), f"{_name(overrides)} ({run_dir.name})"):
                with suppress(FileExistsError):
                    os.symlink(target, name, dir_fd=folder)
                    return
                if os.readlink(name, dir_fd=folder) == target:
                    return
        finally:
            os.close(folder)


def _name(overrides: Sequence[str]) -> str:
    """Return the overrides as one name of a folder."""
    name = _UNFIT.sub("_", ",".join(overrides)).strip(". ") or "defaults"
    return name.encode()[:_LONGEST].decode(errors="ignore")
