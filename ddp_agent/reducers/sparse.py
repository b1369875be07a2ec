"""Exact averaging of a tensor that is mostly zero."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.config.fields import PositiveInt
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.traffic import Collective, Shapes, numbers
from ddp_agent.reducers.base import Finish, Reducer, ReducerTraits


@dataclass(kw_only=True)
class Sparse(Reducer):
    """The exact mean, without blocks that are zero on every rank, such as embedding rows that no rank used.

    Two collectives: the maximum of one byte per block, which shows the blocks that are not zero on some rank, and then
    the sum of these blocks. So it never sends more than `dense` but for that byte. It sends the less, the more ranks
    share their rows (popular words, popular films). The last numbers, too few for a block, always travel.
    """

    _traits = ReducerTraits(exact=True, needs_zeros=True)

    block: PositiveInt  # numbers; the length of an embedding row should be a multiple

    def traffic(self, shapes: Shapes, itemsize: int, ranks: int) -> list[Collective]:
        count = numbers(shapes)
        return [
            Collective(kind="all_reduce", payload_bytes=count // self.block, ranks=ranks),
            Collective(kind="all_reduce", payload_bytes=count * itemsize, ranks=ranks, at_most=True),
        ]

    def start(self, tensor: Tensor, comm: Comm) -> Finish:
        flat = tensor.view(-1)
        whole = flat.numel() // self.block * self.block
        blocks, rest = flat[:whole].view(-1, self.block), flat[whole:]
        touched = (blocks != 0).any(1).to(torch.uint8)
        pending = comm.start_all_reduce_(touched, "max")

        def finish() -> None:
            pending.wait()
            rows = touched.nonzero().view(-1)
            packed = torch.cat([blocks[rows].view(-1), rest])
            comm.all_reduce_(packed)
            packed.mul_(1 / comm.size)
            flat.zero_()  # a zero may have been a negative one, and not on every rank
            blocks[rows] = packed[: rows.numel() * self.block].view(-1, self.block)
            rest.copy_(packed[rows.numel() * self.block :])

        return finish
