"""Saving of a checkpoint: every rank writes its file, and the folder gets its name when all files are complete."""

import hashlib
import io
import logging
import os
import secrets
import shutil
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ddp_agent.checkpoint.folder import (
    check_is_own,
    delete,
    directory_of,
    file_of,
    manifest_of,
    manifest_of_run,
    newest,
    remove,
    surplus,
    unfinished,
)
from ddp_agent.checkpoint.manifest import File, Manifest
from ddp_agent.checkpoint.plain_state import PLAIN
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.error_propagation import attempt, broadcast_text, first_problem, on_all, on_rank_0
from ddp_agent.errors import CheckpointError
from ddp_agent.outputs.files import fsync

_log = logging.getLogger(__name__)


def save(
    directory: Path,
    step: int,
    state: dict[str, Any],
    *,
    comm: Comm,
    fingerprint: Mapping[str, Any],
    details: Mapping[str, Any],
    keep: int,
    keep_best: bool = False,
) -> Path:
    """Write every rank's `state` as one checkpoint, then delete all but the newest `keep`. A collective.

    `keep_best` also keeps the one with the best `details["metric"]`. All ranks return the checkpoint's path, or all
    raise the same CheckpointError and earlier checkpoints are as before. A complete checkpoint of the same step is not
    written again: a resumed run repeats its steps bitwise.
    """
    if keep < 1:
        raise ValueError(f"keep: found {keep}, expected at least 1, the checkpoint just saved")
    path = directory / directory_of(step)
    with comm.uncounted(), comm.ledger.progress.writing(path):
        _, error = attempt(_verify, path, fingerprint, comm)
        if first_problem(comm, error) is None:
            return path
        scratch = path.with_name(f"{path.name}.tmp-{broadcast_text(comm, secrets.token_hex(4))}")
        try:
            on_rank_0(comm, _prepare, path, scratch, fingerprint, comm.size)
            file = on_all(comm, _write, scratch / file_of(comm.rank), state)
            manifest = Manifest(
                step=step,
                world_size=comm.size,
                fingerprint=fingerprint,
                details=details,
                files=_gather(comm, file),
            )
            on_rank_0(comm, _publish, scratch, path, manifest)
        except CheckpointError as failure:
            if comm.rank == 0:
                shutil.rmtree(scratch, ignore_errors=True)
            raise CheckpointError(f"{path} was not saved, earlier ones are intact: {failure}") from failure
        on_rank_0(comm, _prune, path, keep, keep_best)
    return path


def _gather(comm: Comm, file: File) -> dict[str, File]:
    """Return the files of all ranks by name. A sha256 is sent as four 64-bit numbers."""
    numbers = [file.size_bytes, *struct.unpack(">4q", bytes.fromhex(file.sha256))]
    files = {}
    for rank, row in enumerate(comm.all_gather(torch.tensor(numbers, device=comm.device))):
        size_bytes, *words = row.tolist()
        files[file_of(rank)] = File(size_bytes, struct.pack(">4q", *words).hex())
    return files


# Writing.


def _prepare(path: Path, scratch: Path, fingerprint: Mapping[str, Any], world_size: int) -> None:
    check_is_own(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    if os.path.lexists(path):
        _set_aside(path, fingerprint, world_size)
    scratch.mkdir()


def _remove_leftovers(directory: Path) -> None:
    """Remove unfinished checkpoints. One that cannot be removed stays: it is in nobody's way."""
    removed = []
    for leftover in unfinished(directory):
        try:
            remove(leftover)
            removed.append(leftover.name)
        except OSError as error:
            _log.warning("%s: left over from a dead attempt, could not be removed (%s)", leftover, error.strerror)
    if removed:
        _log.warning("removed unfinished checkpoints of a dead attempt in %s: %s", directory, ", ".join(removed))


def _set_aside(path: Path, fingerprint: Mapping[str, Any], world_size: int) -> None:
    """Rename a damaged checkpoint. It is not deleted: somebody may want to examine it."""
    try:
        manifest = manifest_of(path)
    except CheckpointError:
        pass
    else:
        manifest.check_run(path, fingerprint, world_size)
    aside = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
    path.rename(aside)
    _log.warning("moved a damaged checkpoint aside: %s", aside)


def _write(path: Path, state: dict[str, Any]) -> File:
    _check_plain(state, "state")
    try:
        with HashedFile(path) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                raise file.error or error from error
            os.fsync(file.fileno())
            written = File(file.tell(), file.sha256.hexdigest())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    written.check(path)  # one more hash of the file, mostly from the page cache
    return written


class HashedFile(io.FileIO):
    """File that hashes its content and keeps the error of a failed write: torch reports "unexpected pos 832 vs 726"."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x")
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        self.sha256.update(rest)
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return size


def _check_plain(value: Any, where: str) -> None:
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif kind not in PLAIN:
        raise CheckpointError(
            f"{where}: found {kind.__module__}.{kind.__qualname__}, "
            "expected a tensor, number, string, None, or a dict, list or tuple of these"
        )


def _publish(scratch: Path, path: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        if not (scratch / name).exists():
            raise CheckpointError(f"{scratch / name}: not seen by rank 0; all nodes must share the folder")
    manifest.write(scratch)
    scratch.rename(path)  # fails if a folder with content has this name
    fsync(path.parent)


def _prune(path: Path, keep: int, keep_best: bool) -> None:
    """Keep `keep` checkpoints up to this one. Later ones stay: they are damaged, or the run was resumed from there."""
    candidates = newest(path.parent)
    for old in surplus(candidates[candidates.index(path) :], keep=keep, keep_best=keep_best):
        try:
            delete(old)
        except OSError as error:
            _log.warning("%s: the old checkpoint could not be deleted: %s", old, error.strerror)


def _verify(path: Path, fingerprint: Mapping[str, Any], comm: Comm) -> None:
    name = file_of(comm.rank)
    manifest_of_run(path, fingerprint, comm.size).files[name].check(path / name, below=path.parent)
