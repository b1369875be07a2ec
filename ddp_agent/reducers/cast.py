"""Averaging in a narrower floating-point type."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.traffic import Collective, Shapes, numbers
from ddp_agent.reducers.base import Finish, Reducer, ReducerTraits


@dataclass(kw_only=True)
class Cast(Reducer):
    """Numbers travel as bf16 or fp16, half the bytes of fp32; every partial sum is rounded."""

    dtype: Literal["bf16", "fp16"]

    @property
    def traits(self) -> ReducerTraits:
        return ReducerTraits(rounding=2**-8 if self.dtype == "bf16" else 2**-11)

    def traffic(self, shapes: Shapes, itemsize: int, ranks: int) -> list[Collective]:
        return [Collective(kind="all_reduce", payload_bytes=numbers(shapes) * 2, ranks=ranks)]

    def start(self, tensor: Tensor, comm: Comm) -> Finish:
        # Divided before the cast: a sum of K values overflows fp16 (65504) long before their mean does.
        narrow = (tensor / comm.size).to(torch.bfloat16 if self.dtype == "bf16" else torch.float16)
        pending = comm.start_all_reduce_(narrow)

        def finish() -> None:
            pending.wait()
            tensor.copy_(narrow)

        return finish
