"""Exact means and checks over ranks."""

import hashlib

import torch
from torch import Tensor, nn

from ddp_agent.distributed.comm import Comm
from ddp_agent.sync.engine.flat import Flat


def mean_(tensor: Tensor, comm: Comm) -> None:
    """Replace `tensor` by its exact mean over ranks. A collective."""
    comm.all_reduce_(tensor)
    tensor.div_(comm.size)


def require_same_model(model: nn.Module, flat: Flat, comm: Comm, *, trained: bool) -> None:
    """Raise ValueError on every rank, naming the ranks that differ from rank 0, when the ranks' models differ.

    With `trained`, ranks must also train the same parameters: DDP's buckets would differ. A collective.
    """
    _require_same(flat.layout_sha256, comm, "the model's parameters and buffers")
    if trained:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        sha256 = hashlib.sha256("\n".join(names).encode()).hexdigest()
        _require_same(sha256, comm, "the parameters that are trained (requires_grad)")


def _require_same(sha256: str, comm: Comm, what: str) -> None:
    digest = torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8, device=comm.device)
    digests = comm.all_gather(digest)
    different = [rank for rank, other in enumerate(digests) if not torch.equal(other, digests[0])]
    if different:
        raise ValueError(f"{what} differ between ranks: not as on rank 0 are ranks {different}; check code and config")
