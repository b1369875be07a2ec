"""Exact means and checks over ranks."""

import hashlib

from torch import Tensor, nn

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.consistency import differing_ranks
from ddp_agent.sync.engine.flat import Flat


def mean_(tensor: Tensor, comm: Comm) -> None:
    """Replace `tensor` by its exact mean over ranks. A collective."""
    comm.all_reduce_(tensor)
    tensor.div_(comm.size)


def require_same_model(model: nn.Module, flat: Flat, comm: Comm, *, trained: bool) -> None:
    """Raise ValueError on every rank, naming the ranks that differ from rank 0, when the ranks' models differ.

    With `trained`, ranks must also train the same parameters: DDP's buckets would differ. A collective.
    """
    sha256_of = {"the model's parameters and buffers": flat.layout_sha256}
    if trained:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        trained_sha256 = hashlib.sha256("\n".join(names).encode()).hexdigest()
        sha256_of["the parameters that are trained (requires_grad)"] = trained_sha256
    for name, ranks in differing_ranks(sha256_of, comm).items():
        raise ValueError(f"{name} differ between ranks: not as on rank 0 are ranks {ranks}; check code and config")
