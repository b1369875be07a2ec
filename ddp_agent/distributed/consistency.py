"""Checks that ranks agree: on code and settings before the first step, on shared tensors whenever state is kept."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_agent.distributed.comm import Comm
from ddp_agent.errors import ConfigError, DivergedError

MAY_DIFFER = ("data_root", "resume", "run_name")  # paths, which nodes may see under other names
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def differing_ranks(sha256_of: Mapping[str, str], comm: Comm) -> dict[str, list[int]]:
    """Return the ranks whose hash is not rank 0's, by name, for the names where there are such ranks. A collective.

    `sha256_of`: a hex digest per name, with the same names on every rank.
    """
    mine = torch.tensor([list(bytes.fromhex(it)) for it in sha256_of.values()], dtype=torch.uint8, device=comm.device)
    with comm.uncounted():
        gathered = comm.all_gather(mine)
    differing = {}
    for row, name in enumerate(sha256_of):
        hashes = [theirs[row].tolist() for theirs in gathered]
        differing[name] = [rank for rank, theirs in enumerate(hashes) if theirs != hashes[0]]
    return {name: ranks for name, ranks in differing.items() if ranks}


def require_identical(sha256_of: Mapping[str, str], comm: Comm) -> None:
    """Raise ConfigError on every rank, with all names whose hashes differ and the ranks. A collective."""
    if differing := differing_ranks(sha256_of, comm):
        raise ConfigError(
            [f"ranks differ: {name} of {_ranks(ranks)} is not that of rank 0" for name, ranks in differing.items()]
        )


@dataclass(frozen=True)
class ReplicatedTensor:
    """A tensor that some ranks must hold with identical bits."""

    tensor: Tensor | None  # None: there is nothing to compare now, or this rank does not hold it
    ranks: Sequence[int]
    name: str = "the parameters that all ranks share"


def ranks_unlike_rank_0(tensor: Tensor, comm: Comm) -> list[int]:
    """Return the ranks whose copy differs from rank 0's in any bit. A collective."""
    (sums,) = _bit_sums([tensor], comm)
    return [rank for rank, theirs in enumerate(sums) if theirs != sums[0]]


def require_replicated(tensors: Sequence[ReplicatedTensor], comm: Comm, step: int) -> None:
    """Raise DivergedError on every rank when copies of a replicated tensor differ in any bit. A collective.

    Every rank must name the same tensors, also those that it does not hold.
    """
    for replicated, sums in zip(tensors, _bit_sums([it.tensor for it in tensors], comm), strict=True):
        first = replicated.ranks[0]
        if others := [rank for rank in replicated.ranks if sums[rank] != sums[first]]:
            raise DivergedError(
                f"after step {step} {replicated.name} are not the same on {_ranks(others)} as on rank {first}: a "
                "faulty memory or link, or ranks that compute differently; nothing of it is saved",
                step,
            )


def _bit_sums(tensors: Sequence[Tensor | None], comm: Comm) -> list[list[int]]:
    """Return by tensor and rank the sum of the elements' bits read as integers, 0 for None.

    A flipped bit changes the sum. Costs one pass over each tensor and sends eight bytes per tensor.
    """
    mine = torch.zeros(len(tensors), dtype=torch.int64, device=comm.device)
    for row, tensor in enumerate(tensors):
        if tensor is not None:
            mine[row] = tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
    with comm.uncounted():
        return torch.stack(comm.all_gather(mine)).T.tolist()


def code_sha256() -> str:
    """Return the hash of this package's sources and of torch's version. Takes about 10 ms."""
    digest = hashlib.sha256(torch.__version__.encode())
    folder = Path(__file__).parents[1]
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def config_sha256(cfg: Mapping[str, Any]) -> str:
    """Return the hash of a configuration without the keys in `MAY_DIFFER`."""
    return sha256_of({key: value for key, value in cfg.items() if key not in MAY_DIFFER})


def sha256_of(value: Any) -> str:
    """Return the hash of a value's JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}"
