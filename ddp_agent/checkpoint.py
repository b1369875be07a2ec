"""Checkpoints that are whole or do not exist.

    checkpoints/step-00000120/{rank-0000.pt, rank-0001.pt, manifest.json}

Every rank writes its own state, because between syncs everything differs, into a scratch directory that all
ranks must see (on several nodes: a shared file system). Only when every file has been read back as it was
meant does rank 0 write the manifest and rename the directory, so a crash at any moment leaves the earlier
checkpoints as they were. Reading trusts nothing: sizes and hashes first, then torch's loader for plain data.

A state is made of tensors, numbers, strings, None, and dicts, lists and tuples of these. Anything else (NumPy
values, paths, a `defaultdict`) would be refused by that loader, so it is refused on saving already. Tensors
come back on the CPU and are the caller's; `Optimizer.load_state_dict` keeps references: give it a deep copy.
"""

import hashlib
import io
import logging
import os
import re
import secrets
import shutil
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddp_agent.agreement import attempt, first_problem, on_all, on_rank_0, tell
from ddp_agent.comm import Comm
from ddp_agent.errors import CheckpointError
from ddp_agent.manifest import File, Manifest

_log = logging.getLogger(__name__)
_CHECKPOINT = re.compile(r"step-\d{8,}")
_SCRATCH = re.compile(r"step-\d{8,}\.tmp-[0-9a-f]{8}")
_PLAIN = (Tensor, nn.Parameter, str, bool, int, float, NoneType)


def save(
    directory: Path,
    step: int,
    state: dict[str, Any],
    *,
    comm: Comm,
    fingerprint: Mapping[str, Any],
    details: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes every rank's `state` as one checkpoint, then deletes all but the newest `keep`. A collective.

    All ranks return its path, or all raise the same CheckpointError and earlier checkpoints are as before.
    A step that is there already is left alone: a resumed run repeats its steps bitwise, so nothing is new.
    """
    if keep < 1:
        raise ValueError(f"keep: found {keep}, expected at least 1, the checkpoint just saved")
    path = directory / _directory(step)
    with comm.uncounted():
        _, error = attempt(_verify, path, fingerprint, comm)
        if first_problem(comm, error) is None:
            return path
        scratch = path.with_name(f"{path.name}.tmp-{tell(comm, secrets.token_hex(4))}")
        try:
            on_rank_0(comm, _prepare, path, scratch, fingerprint, comm.size)
            file = on_all(comm, _write, scratch / _name(comm.rank), state)
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
        on_rank_0(comm, _prune, path, keep)
    return path


def load(directory: Path, *, comm: Comm, fingerprint: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """Step and this rank's state of the newest checkpoint that is whole on every rank. A collective.

    None when there is no checkpoint. A damaged one is logged, and the one before it taken. Raises
    CheckpointError, the same on all ranks, when all are damaged or when the newest belongs to another run.
    """
    refused = []
    with comm.uncounted():
        candidates = on_rank_0(comm, newest, directory) or []
        for name in tell(comm, " ".join(path.name for path in candidates)).split():
            manifest = on_all(comm, _manifest_of_run, directory / name, fingerprint, comm.size)
            state, error = attempt(_read, directory / name / _name(comm.rank), manifest)
            problem = first_problem(comm, error)
            if problem is None:
                return manifest.step, cast(dict[str, Any], state)
            refused.append(problem)
            if comm.rank == 0:
                _log.warning("checkpoint refused, trying the one before it: %s", problem)
    if refused:
        raise CheckpointError("\n  ".join([f"{directory}: every checkpoint is damaged", *refused]))
    return None


def newest(directory: Path) -> list[Path]:
    """Checkpoints with a valid manifest, newest first. Without one a directory is none; that is logged."""
    steps = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        if not _CHECKPOINT.fullmatch(path.name):
            continue
        try:
            steps[_manifest(path).step] = path
        except CheckpointError as error:
            _log.warning("checkpoint ignored: %s", error)
    return [steps[step] for step in sorted(steps, reverse=True)]


def _directory(step: int) -> str:
    return f"step-{step:08d}"


def _name(rank: int) -> str:
    return f"rank-{rank:04d}.pt"


def _gather(comm: Comm, file: File) -> dict[str, File]:
    """The files of all ranks, by name. A sha256 travels as four 64-bit numbers."""
    numbers = [file.size_bytes, *struct.unpack(">4q", bytes.fromhex(file.sha256))]
    files = {}
    for rank, row in enumerate(comm.all_gather(torch.tensor(numbers, device=comm.device))):
        size_bytes, *words = row.tolist()
        files[_name(rank)] = File(size_bytes, struct.pack(">4q", *words).hex())
    return files


# Writing.


def _prepare(path: Path, scratch: Path, fingerprint: Mapping[str, Any], world_size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    leftovers = [entry for entry in path.parent.iterdir() if _SCRATCH.fullmatch(entry.name)]
    for leftover in leftovers:
        shutil.rmtree(leftover)
    if leftovers:
        names = ", ".join(sorted(leftover.name for leftover in leftovers))
        _log.warning("removed what a dead attempt left unfinished in %s: %s", path.parent, names)
    if path.exists():
        _set_aside(path, fingerprint, world_size)
    scratch.mkdir()


def _set_aside(path: Path, fingerprint: Mapping[str, Any], world_size: int) -> None:
    """Makes room where a damaged checkpoint lies, without deleting what somebody may want to look into."""
    try:
        manifest = _manifest(path)
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
        with _HashedFile(path) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                raise file.error or error from error
            os.fsync(file.fileno())
            written = File(file.tell(), file.sha256.hexdigest())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    written.check(path)  # costs one more hash of the file, as a rule from the page cache
    return written


class _HashedFile(io.FileIO):
    """Hashes what is written, and keeps why a write failed: torch only says "unexpected pos 832 vs 726"."""

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
    elif kind not in _PLAIN:
        raise CheckpointError(
            f"{where}: found {kind.__module__}.{kind.__qualname__}, "
            "expected a tensor, number, string, None, or a dict, list or tuple of these"
        )


def _publish(scratch: Path, path: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        if not (scratch / name).exists():
            raise CheckpointError(f"{scratch / name}: not seen by rank 0, all nodes must share the directory")
    manifest.write(scratch)
    scratch.rename(path)  # fails on a directory that is there and not empty
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(path: Path, keep: int) -> None:
    """Leaves `keep` of the checkpoints up to this one. Later ones are damaged, or the run had begun there."""
    candidates = newest(path.parent)
    for old in candidates[candidates.index(path) + keep :]:
        doomed = old.with_name(f"{old.name}.tmp-{secrets.token_hex(4)}")
        try:
            old.rename(doomed)  # first, so that half a checkpoint never bears the name of a whole one
            shutil.rmtree(doomed)
        except OSError as error:
            _log.warning("%s: the old checkpoint could not be deleted: %s", old, error.strerror)


# Reading.


def _verify(path: Path, fingerprint: Mapping[str, Any], comm: Comm) -> None:
    name = _name(comm.rank)
    _manifest_of_run(path, fingerprint, comm.size).files[name].check(path / name)


def _manifest_of_run(path: Path, fingerprint: Mapping[str, Any], world_size: int) -> Manifest:
    manifest = _manifest(path)
    manifest.check_run(path, fingerprint, world_size)
    return manifest


def _manifest(path: Path) -> Manifest:
    manifest = Manifest.read(path)
    if path.name != _directory(manifest.step):
        raise CheckpointError(f"{path}: holds the manifest of step {manifest.step}")
    return manifest


def _read(path: Path, manifest: Manifest) -> dict[str, Any]:
    manifest.files[path.name].check(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own text would advise to switch the restriction off
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"it names {named[1]}, which is code" if named else "it is not in torch's format"
        raise CheckpointError(f"{path}: refused by torch's loader for plain data, {found}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: found a {type(state).__name__}, expected a dict")
    return state
