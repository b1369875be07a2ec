"""What becomes of a model's buffers and of the optimizer's state when parameters are synchronised."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddp_agent.comm import Comm
from ddp_agent.flat import Flat
from ddp_agent.reducers.base import Reducer

# average: mean of floating-point buffers, maximum of integers (BatchNorm counts batches). recalibrate: nothing
# travels; whoever evaluates estimates the statistics anew with the averaged weights (`evaluate.recalibrate_`).
BufferPolicy = Literal["average", "rank0", "local", "recalibrate"]
OptimizerPolicy = Literal["local", "average", "reset"]


def merge_buffers_(flat: Flat, policy: BufferPolicy, comm: Comm, *, homed: bool = True) -> None:
    """Brings buffers to one state on all ranks, by `policy`; `homed=False`: but not those in `flat.everything`."""
    if policy in ("local", "recalibrate"):
        return
    inside = [flat.buffers] if homed and flat.buffers.numel() else []
    if policy == "rank0":
        for tensor in (*inside, *flat.others):
            comm.broadcast_(tensor)
        return
    for tensor in inside:
        comm.all_reduce_(tensor)
        tensor.div_(comm.size)
    floating = [buffer for buffer in flat.others if buffer.is_floating_point()]
    merge_packed_(floating, torch.float64, "mean", comm)
    merge_packed_([buffer for buffer in flat.others if not buffer.is_floating_point()], torch.int64, "max", comm)


def average_(flat: Flat, policy: BufferPolicy, reducer: Reducer, comm: Comm) -> None:
    """The mean of raw parameters over `comm`, and buffers by `policy`."""
    together = policy == "average"  # buffers lie behind the parameters: one collective serves both
    finish = reducer.start(flat.everything if together else flat.parameters, comm)
    merge_buffers_(flat, policy, comm, homed=not together)  # meanwhile
    finish()


def merge_optimizer_state_(optimizer: Optimizer, policy: OptimizerPolicy, comm: Comm) -> None:
    """`average`: the mean of state tensors shaped like their parameter (moments); `reset`: all state is forgotten."""
    if policy == "reset":
        optimizer.state.clear()
    elif policy == "average":
        moments = list(_moments(optimizer))
        if moments:
            merge_packed_(moments, moments[0].dtype, "mean", comm)


def _moments(optimizer: Optimizer) -> list[Tensor]:
    """State tensors in parameter order. Ranks must send the same shapes, so a parameter that has no state here
    (it had no gradient yet) counts as zeros, which are not kept: an optimizer takes kept ones for its own."""
    moments = []
    for group in optimizer.param_groups:
        states = {p: optimizer.state[p] for p in group["params"] if p in optimizer.state}
        keys = {key for p, state in states.items() for key, value in state.items() if _like(value, p)}
        for p in group["params"]:
            moments += [states.get(p, {}).get(key, torch.zeros_like(p)) for key in sorted(keys)]
    return moments


def _like(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0


def merge_packed_(tensors: Sequence[Tensor], dtype: torch.dtype, how: Literal["mean", "max"], comm: Comm) -> None:
    """Mean or maximum over ranks of many small tensors in one collective."""
    if not tensors:
        return
    packed = torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors])
    comm.all_reduce_(packed, "sum" if how == "mean" else "max")
    if how == "mean":
        packed.div_(comm.size)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, packed.split(sizes), strict=True):
        tensor.copy_(part.view(tensor.shape))
