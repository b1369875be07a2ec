"""The transfer of a participant's state to replicas that join. No mode's traffic: it is not counted."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddp_agent.distributed.c10d import Store
from ddp_agent.elastic.comm import ElasticComm


def send(comm: ElasticComm, store: Store, state: Mapping[str, Any], size: int) -> None:
    """Send `state` to ranks 1 to size - 1 of a group of its own. Raises CommError when one of them is lost."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    _broadcast(comm, store, torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8), 0, size)


def receive(comm: ElasticComm, store: Store, rank: int, size: int) -> Any:
    """Return what rank 0 sends, loaded without unpickling. Raises CommError when it does not arrive."""
    packed = _broadcast(comm, store, torch.empty(0, dtype=torch.uint8), rank, size)
    return torch.load(io.BytesIO(packed.numpy().tobytes()), weights_only=True)


def _broadcast(comm: ElasticComm, store: Store, packed: Tensor, rank: int, size: int) -> Tensor:
    try:
        comm.connect(store, rank, size)
        with comm.connected(), comm.uncounted():
            length = torch.tensor(packed.numel())
            comm.broadcast_(length)
            if rank != 0:
                packed = torch.empty(int(length), dtype=torch.uint8)
            comm.broadcast_(packed)
            comm.barrier()
    finally:
        comm.close()
    return packed
