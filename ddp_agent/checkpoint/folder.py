"""What lies in a folder of checkpoints, by name and manifest. Reads no states."""

import logging
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddp_agent.checkpoint.manifest import Manifest
from ddp_agent.errors import CheckpointError

_log = logging.getLogger(__name__)
_CHECKPOINT = re.compile(r"step-\d{8,}")
_SCRATCH = re.compile(r"step-\d{8,}\.tmp-[0-9a-f]{8}")


def directory_of(step: int) -> str:
    return f"step-{step:08d}"


def file_of(rank: int) -> str:
    return f"rank-{rank:04d}.pt"


def newest(directory: Path) -> list[Path]:
    """Checkpoints with a valid manifest, newest first. Without one a directory is none; that is logged."""
    steps = {}
    for path in named_as_checkpoints(directory):
        try:
            steps[manifest_of(path).step] = path
        except CheckpointError as error:
            _log.warning("checkpoint ignored: %s", error)
    return [steps[step] for step in sorted(steps, reverse=True)]


def named_as_checkpoints(directory: Path) -> list[Path]:
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in paths if _CHECKPOINT.fullmatch(path.name))


def unfinished(directory: Path) -> list[Path]:
    """What attempts that died left of checkpoints that they were writing or deleting."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in paths if _SCRATCH.fullmatch(path.name))


def manifest_of(path: Path) -> Manifest:
    manifest = Manifest.read(path)
    if path.name != directory_of(manifest.step):
        raise CheckpointError(f"{path}: holds the manifest of step {manifest.step}")
    return manifest


def manifest_of_run(path: Path, fingerprint: Mapping[str, Any], world_size: int | None) -> Manifest:
    """`world_size` None: any."""
    manifest = manifest_of(path)
    manifest.check_run(path, fingerprint, world_size)
    return manifest


def metric_of(manifest: Manifest) -> float | None:
    """The test metric that the model had when it was saved; None when it was not evaluated then."""
    metric = manifest.details.get("metric")
    return float(metric) if isinstance(metric, int | float) else None


def best(paths: Sequence[Path]) -> Path | None:
    """The one with the best test metric, of equals the first; None when none was evaluated."""
    manifests = {path: manifest_of(path) for path in paths}
    metrics = {path: metric for path, it in manifests.items() if (metric := metric_of(it)) is not None}
    if not metrics:
        return None
    sign = 1 if any(manifests[path].details.get("higher_is_better") for path in metrics) else -1
    return max(metrics, key=lambda path: (sign * metrics[path], -manifests[path].step))


def surplus(paths: Sequence[Path], *, keep: int, keep_best: bool) -> list[Path]:
    """Of checkpoints, newest first, those that need not stay."""
    spared = best(paths) if keep_best else None
    return [path for path in paths[keep:] if path != spared]


def delete(path: Path) -> None:
    """Renamed first, so that half a checkpoint never bears the name of a whole one."""
    doomed = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    path.rename(doomed)
    shutil.rmtree(doomed)
