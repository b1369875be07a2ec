"""The folder of a run's checkpoints: names and manifests. Reads no states."""

import logging
import re
import secrets
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddp_agent.checkpoint.manifest import Manifest
from ddp_agent.config.untrusted import kind_of, number
from ddp_agent.errors import CheckpointError

_log = logging.getLogger(__name__)
_CHECKPOINT = re.compile(r"step-\d{8,}")
_SCRATCH = re.compile(r"step-\d{8,}\.tmp-[0-9a-f]{8}")


def directory_of(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:08d}"


def file_of(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank-{rank:04d}.pt"


def newest(directory: Path) -> list[Path]:
    """Return the checkpoints with a valid manifest, newest first. Folders without one are logged."""
    steps = {}
    for path in named_as_checkpoints(directory):
        try:
            steps[manifest_of(path).step] = path
        except CheckpointError as error:
            _log.warning("checkpoint ignored: %s", error)
    return [steps[step] for step in sorted(steps, reverse=True)]


def named_as_checkpoints(directory: Path) -> list[Path]:
    """Return what is named as a checkpoint, damaged ones and things of another kind included."""
    return _named(directory, _CHECKPOINT)


def unfinished(directory: Path) -> list[Path]:
    """Return the scratch folders of attempts that died while they wrote or deleted a checkpoint."""
    return _named(directory, _SCRATCH)


def _named(directory: Path, pattern: re.Pattern[str]) -> list[Path]:
    check_is_own(directory)
    try:
        return sorted(path for path in directory.iterdir() if pattern.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{directory}: {error.strerror}") from error


def check_is_own(directory: Path) -> None:
    """Raise CheckpointError if the folder of checkpoints is a link: it may be another run's, whose files are kept."""
    with suppress(OSError):
        mode = directory.lstat().st_mode
        if not stat.S_ISDIR(mode):
            raise CheckpointError(
                f"{directory}: is {kind_of(mode)}, expected a folder of this run's own; for another disk, link the "
                "whole run directory"
            )


def manifest_of(path: Path) -> Manifest:
    """Read a checkpoint's manifest. Raises CheckpointError if it is damaged or of another step."""
    manifest = Manifest.read(path)
    if path.name != directory_of(manifest.step):
        raise CheckpointError(f"{path}: holds the manifest of step {manifest.step}")
    return manifest


def manifest_of_run(path: Path, fingerprint: Mapping[str, Any], world_size: int | None) -> Manifest:
    """Read a manifest and compare it with this run: see `Manifest.check_run`."""
    manifest = manifest_of(path)
    manifest.check_run(path, fingerprint, world_size)
    return manifest


def metric_of(manifest: Manifest) -> float | None:
    """Return the test metric of the saved model; None if it was not evaluated at this step."""
    return number(manifest.details.get("metric"))


def best(paths: Sequence[Path]) -> Path | None:
    """Return the checkpoint with the best test metric, the earliest of equal ones; None if none was evaluated."""
    manifests = {path: manifest_of(path) for path in paths}
    metrics = {path: metric for path in paths if (metric := metric_of(manifests[path])) is not None}
    if not metrics:
        return None
    sign = 1 if any(manifests[path].details.get("higher_is_better") for path in metrics) else -1
    return max(metrics, key=lambda path: (sign * metrics[path], -manifests[path].step))


def surplus(paths: Sequence[Path], *, keep: int, keep_best: bool) -> list[Path]:
    """Return the checkpoints that may be deleted. `paths` are ordered from the newest to the oldest."""
    kept = best(paths) if keep_best else None
    return [path for path in paths[keep:] if path != kept]


def delete(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that no half of one ever has a checkpoint's name."""
    scratch = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    path.rename(scratch)
    remove(scratch)


def remove(path: Path) -> None:
    """Remove a folder with its content, or whatever else has this name. No link is followed."""
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()
