"""Loading of a checkpoint, on all ranks or on none."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ddp_agent.checkpoint import plain_state
from ddp_agent.checkpoint.folder import file_of, manifest_of_run, newest
from ddp_agent.checkpoint.manifest import Manifest
from ddp_agent.checkpoint.plain_state import NotPlainError
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.error_propagation import attempt, broadcast_text, first_problem, on_all, on_rank_0
from ddp_agent.errors import CheckpointError

_log = logging.getLogger(__name__)


def load(
    directory: Path, *, comm: Comm, fingerprint: Mapping[str, Any], of_other_ranks: bool = False
) -> tuple[int, dict[str, Any]] | None:
    """Return the step and this rank's state of the newest checkpoint that is complete on every rank. A collective.

    `of_other_ranks` admits a checkpoint of another number of ranks; then every rank gets rank 0's state. Returns None
    if there is no checkpoint. A damaged one is logged, and the one before it is used. Raises CheckpointError, the same
    on all ranks, when all are damaged or when the newest belongs to another run.
    """
    problems = []
    with comm.uncounted():
        candidates = on_rank_0(comm, newest, directory) or []
        for name in broadcast_text(comm, " ".join(path.name for path in candidates)).split():
            admitted = None if of_other_ranks else comm.size
            manifest = on_all(comm, manifest_of_run, directory / name, fingerprint, admitted)
            rank = comm.rank if manifest.world_size == comm.size else 0
            state, error = attempt(_read, directory / name / file_of(rank), manifest)
            problem = first_problem(comm, error)
            if problem is None:
                return manifest.step, cast(dict[str, Any], state)
            problems.append(problem)
            if comm.rank == 0:
                _log.warning("checkpoint refused, trying the one before it: %s", problem)
    if problems:
        raise CheckpointError("\n  ".join([f"{directory}: every checkpoint is damaged", *problems]))
    return None


def _read(path: Path, manifest: Manifest) -> dict[str, Any]:
    if path.name not in manifest.files:
        raise CheckpointError(f"{path}: the manifest beside it names no such file")
    try:
        with manifest.files[path.name].opened(path, below=path.parent.parent) as file:
            state = plain_state.read(file)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except NotPlainError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: found a {type(state).__name__}, expected a dict")
    return state
