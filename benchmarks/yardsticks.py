"""Plain collectives that this tree is measured against. No run uses them.

Beside ddp_agent/distributed this is the only file that calls torch.distributed's collectives.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.utils import average_parameters
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode


def flat_sum_(flat: Tensor) -> None:
    """Sum over ranks: the least that any averaging of so many numbers has to do."""
    dist.all_reduce(flat)


def flat_mean_(flat: Tensor) -> None:
    """Average over ranks."""
    dist.all_reduce(flat)
    flat.div_(dist.get_world_size())


def torch_mean_(parameters: Iterable[nn.Parameter]) -> None:
    """Average as torch's model averagers do: pack, divide, reduce, and point the parameters at the result."""
    average_parameters(iter(parameters), cast(dist.ProcessGroup, dist.group.WORLD))


@torch.no_grad()
def tensorwise_mean_(tensors: Iterable[Tensor]) -> None:
    """Average by one collective per tensor, as most hand-written code and accelerate's LocalSGD do."""
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor.div_(dist.get_world_size())


def ddp(model: nn.Module) -> nn.Module:
    """Return DistributedDataParallel with its fastest options for a model without buffers."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


class CollectiveCounter(TorchDispatchMode):
    """Context manager that counts the collectives which reach c10d, and so also checks `CommStats`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0
        self.payload_bytes = 0
        self.wire_bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            ranks = dist.get_world_size()
            match func._schema.name.removeprefix("c10d::"):
                case "allgather_":  # its output comes first, as for all-to-all; the others change their first argument
                    sent, factor = args[1], float(ranks - 1)
                case "alltoall_base_":
                    sent, factor = [args[1]], (ranks - 1) / ranks
                case "allreduce_":
                    sent, factor = args[0], 2 * (ranks - 1) / ranks
                case _:
                    sent, factor = args[0], 1.0
            payload = sum(tensor.nbytes for tensor in sent)
            self.calls += 1
            self.payload_bytes += payload
            self.wire_bytes += payload * factor
        return func(*args, **(kwargs or {}))
