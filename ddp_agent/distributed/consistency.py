"""What must be alike on all ranks, compared by numbers: before the first step, and whenever a state is kept."""

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


def require_alike(sha256_of: Mapping[str, str], comm: Comm) -> None:
    """Raises ConfigError on every rank, naming what differs and on which ranks. A collective."""
    mine = torch.tensor([list(bytes.fromhex(it)) for it in sha256_of.values()], dtype=torch.uint8, device=comm.device)
    with comm.uncounted():
        gathered = comm.all_gather(mine)
    problems = []
    for number, what in enumerate(sha256_of):
        hashes = [theirs[number].tolist() for theirs in gathered]
        if others := [rank for rank, each in enumerate(hashes) if each != hashes[0]]:
            problems.append(f"ranks differ: {what} of {_ranks(others)} is not that of rank 0")
    if problems:
        raise ConfigError(problems)


@dataclass(frozen=True)
class Common:
    """What some ranks have alike, bit for bit."""

    tensor: Tensor | None  # None: nothing is sure to be, or this rank is none of them
    ranks: Sequence[int]
    what: str = "the parameters that all ranks share"


def unlike_rank_0(tensor: Tensor, comm: Comm) -> list[int]:
    """Ranks where a bit of it is another than on rank 0. A collective."""
    (sums,) = _sums([tensor], comm)
    return [rank for rank, each in enumerate(sums) if each != sums[0]]


def require_common(parts: Sequence[Common], comm: Comm, step: int) -> None:
    """Raises DivergedError on every rank when a bit of what should be alike differs. A collective.

    Every rank names the same parts, also those that it has nothing of.
    """
    for part, sums in zip(parts, _sums([part.tensor for part in parts], comm), strict=True):
        first = part.ranks[0]
        if others := [rank for rank in part.ranks if sums[rank] != sums[first]]:
            raise DivergedError(
                f"after step {step} {part.what} are not the same on {_ranks(others)} as on rank {first}: a faulty "
                "memory or link, or ranks that compute differently; nothing of it is saved",
                step,
            )


def _sums(tensors: Sequence[Tensor | None], comm: Comm) -> list[list[int]]:
    """By tensor and rank: the sum of the numbers' bits taken as integers, which a flipped bit changes; 0 for None.

    One pass over each, and eight bytes.
    """
    mine = torch.zeros(len(tensors), dtype=torch.int64, device=comm.device)
    for number, tensor in enumerate(tensors):
        if tensor is not None:
            mine[number] = tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
    with comm.uncounted():
        return torch.stack(comm.all_gather(mine)).T.tolist()


def code_sha256() -> str:
    """Of this package and of torch's version. Takes some 10 ms."""
    digest = hashlib.sha256(torch.__version__.encode())
    folder = Path(__file__).parents[1]
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def config_sha256(cfg: Mapping[str, Any]) -> str:
    return sha256_of({key: value for key, value in cfg.items() if key not in MAY_DIFFER})


def sha256_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}"
