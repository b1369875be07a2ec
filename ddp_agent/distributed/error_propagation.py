"""Work that may fail on one rank. All ranks raise then, instead of waiting for that rank in a collective for ever.

Every function except `attempt` is a collective whose traffic is counted: call it inside `comm.uncounted()` where that
would falsify a measurement.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

from ddp_agent.distributed.comm import Comm
from ddp_agent.errors import CheckpointError, RefusedError

P = ParamSpec("P")
T = TypeVar("T")


def on_all(comm: Comm, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` on every rank and return its result. When it fails on one, all ranks raise its CheckpointError."""
    result, error = attempt(work, *args, **kwargs)
    problem = first_problem(comm, error)
    if problem is not None:
        raise CheckpointError(problem) from error
    return cast(T, result)


def on_rank_0(comm: Comm, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Run `work` on rank 0 while the other ranks wait; return None there. All ranks raise as in `on_all`."""
    return on_all(comm, lambda: work(*args, **kwargs) if comm.rank == 0 else None)


def attempt(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, None] | tuple[None, Exception]:
    """Return the result of `work` and None, or None and its exception."""
    try:
        return work(*args, **kwargs), None
    except Exception as error:  # any: the peers wait for this rank, whatever happened to it
        return None, error


def first_problem(comm: Comm, error: Exception | None) -> str | None:
    """Return on every rank the text of the lowest rank that has an error, or None when no rank has one."""
    failing = torch.tensor(comm.size if error is None else comm.rank, device=comm.device)
    comm.all_reduce_(failing, "min")
    rank = int(failing)
    if rank == comm.size:
        return None
    text = broadcast_text(comm, _reason(error) if error else "", source=rank)
    return text if comm.size == 1 else f"rank {rank}: {text}"


def broadcast_text(comm: Comm, text: str, source: int = 0) -> str:
    """Return the text of rank `source` on every rank. It travels as numbers: collectives for objects unpickle."""
    encoded = text.encode(errors="replace")
    length = torch.tensor(len(encoded), device=comm.device)
    comm.broadcast_(length, source)
    codes = torch.zeros(int(length), dtype=torch.uint8, device=comm.device)
    if comm.rank == source:
        codes.copy_(torch.tensor(list(encoded), dtype=torch.uint8))
    comm.broadcast_(codes, source)
    return bytes(codes.tolist()).decode()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, RefusedError) else f"{type(error).__name__}: {error}"
