"""Policies for a model's buffers and the optimizer's state when parameters are synchronised."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.traffic import Collective, RunSizes
from ddp_agent.reducers.base import Finish, Reducer
from ddp_agent.sync.engine.flat import Flat

# average: mean of floating-point buffers, maximum of integers (BatchNorm counts batches). recalibrate: nothing
# travels; before an evaluation the statistics are estimated again with the averaged weights (`recalibrate_`).
BufferPolicy = Literal["average", "rank0", "local", "recalibrate"]
OptimizerPolicy = Literal["local", "average", "reset"]


def merge_buffers_(flat: Flat, policy: BufferPolicy, comm: Comm) -> None:
    """Bring buffers to one state on all ranks, by `policy`."""
    start_merging_buffers(flat, policy, comm)()


def start_merging_buffers(flat: Flat, policy: BufferPolicy, comm: Comm, *, homed: bool = True) -> Finish:
    """Start `merge_buffers_`. Return a function that waits and leaves the result.

    `homed=False` leaves out the buffers in `flat.everything`. Small collectives that start before a large one and end
    after it cost nothing. A wait for each of them cost ResNet-18 15 % of its averaging, in sleeping and waking up.
    """
    if policy in ("local", "recalibrate"):
        return _nothing
    inside = [flat.buffers] if homed and flat.buffers.numel() else []
    if policy == "rank0":
        for tensor in (*inside, *flat.others):
            comm.broadcast_(tensor)
        return _nothing
    floating = [buffer for buffer in flat.others if buffer.is_floating_point()]
    integers = [buffer for buffer in flat.others if not buffer.is_floating_point()]
    finishes = [
        *(_start_mean(tensor, comm) for tensor in inside),
        _start_packed(floating, torch.float64, "mean", comm),
        _start_packed(integers, torch.int64, "max", comm),
    ]

    def finish() -> None:
        for finish_one in finishes:
            finish_one()

    return finish


def buffer_traffic(policy: BufferPolicy, run: RunSizes, *, homed: bool = True) -> list[Collective]:
    """Return the collectives of `start_merging_buffers`."""
    inside = [run.buffer_numbers * run.itemsize] if homed and run.buffer_numbers else []
    if policy == "rank0":
        sizes = [*inside, *run.other_buffer_bytes]
        return [Collective(kind="broadcast", payload_bytes=size, ranks=run.ranks) for size in sizes]
    packed = [count * 8 for count in (run.floating_numbers, run.integer_numbers) if count]  # fp64 and int64
    sizes = [*inside, *packed] if policy == "average" else []
    return [Collective(kind="all_reduce", payload_bytes=size, ranks=run.ranks) for size in sizes]


def _nothing() -> None:
    """Do nothing: the buffers do not travel."""


def average_(flat: Flat, policy: BufferPolicy, reducer: Reducer, comm: Comm) -> None:
    """Average raw parameters over `comm`, and treat buffers by `policy`."""
    together = policy == "average"  # buffers lie behind the parameters, so that one collective averages both
    finish_buffers = start_merging_buffers(flat, policy, comm, homed=not together)
    for tensor in flat.stretches if together else [flat.parameters]:
        reducer.mean_(tensor, comm)
    finish_buffers()


def averaging_traffic(policy: BufferPolicy, reducer: Reducer, run: RunSizes) -> list[Collective]:
    """Return the collectives of `average_`."""
    together = policy == "average"
    buffers = buffer_traffic(policy, run, homed=not together)
    pieces = [run.numbers, run.buffer_numbers] if together else [run.numbers]
    stretches = [sum(pieces)] if run.in_one_piece else [count for count in pieces if count]
    means = [each for count in stretches for each in reducer.traffic([[count]], run.itemsize, run.ranks)]
    return [*buffers, *means]


def merge_optimizer_state_(optimizer: Optimizer, flat: Flat, policy: OptimizerPolicy, comm: Comm) -> None:
    """Treat the optimizer's state of these parameters by `policy`.

    `average`: state tensors in the shape of their parameter (moments) become their mean. `reset`: all state is deleted.
    """
    own = set(flat.named.values())
    if policy == "reset":
        for parameter in own:
            optimizer.state.pop(parameter, None)
    elif policy == "average" and (moments := _moments(optimizer, own, comm)):
        merge_packed_(moments, moments[0].dtype, "mean", comm)


def optimizer_traffic(policy: OptimizerPolicy, run: RunSizes) -> list[Collective]:
    """Return the collectives of `merge_optimizer_state_`."""
    sizes = [8, *([run.moments * run.itemsize] if run.moments else [])] if policy == "average" else []
    return [Collective(kind="all_reduce", payload_bytes=size, ranks=run.ranks) for size in sizes]


def count_moments(optimizer: Optimizer, flat: Flat) -> int:
    """Return how many numbers of the optimizer's state are averaged where the policy says so."""
    own = set(flat.named.values())
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p in own]
    states = [(p, optimizer.state.get(p, {})) for p in parameters]
    names = {name for p, state in states for name, value in state.items() if _like(value, p)}
    sizes: list[int] = [parameter.numel() for parameter in parameters]
    return len(names) * sum(sizes)


def _moments(optimizer: Optimizer, own: set[nn.Parameter], comm: Comm) -> list[Tensor]:
    """Return the state tensors in parameter order, and zeros for a parameter without state (it had no gradient yet).

    Ranks must send the same shapes. The zeros are not stored: the optimizer would take them for its own state.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p in own]
    states = [(p, optimizer.state.get(p, {})) for p in parameters]
    names = sorted({name for p, state in states for name, value in state.items() if _like(value, p)})
    # A rank without any gradient so far does not know the names of the moments, and needs only their number.
    slots = [*names, *range(_most(len(names), comm) - len(names))]
    return [state.get(slot, torch.zeros_like(p)) for p, state in states for slot in slots]


def _most(count: int, comm: Comm) -> int:
    """Return the largest `count` of any rank. A collective of 8 bytes, for which the host waits."""
    largest = torch.tensor([count], device=comm.device)
    comm.all_reduce_(largest, "max")
    return int(largest)


def _like(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0


def merge_packed_(tensors: Sequence[Tensor], dtype: torch.dtype, how: Literal["mean", "max"], comm: Comm) -> None:
    """Replace many small tensors by their mean or maximum over ranks, in one collective."""
    _start_packed(tensors, dtype, how, comm)()


def _start_packed(tensors: Sequence[Tensor], dtype: torch.dtype, how: Literal["mean", "max"], comm: Comm) -> Finish:
    if not tensors:
        return _nothing
    packed = torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors])
    pending = comm.start_all_reduce_(packed, "sum" if how == "mean" else "max")

    def finish() -> None:
        pending.wait()
        if how == "mean":
            packed.div_(comm.size)
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, part in zip(tensors, packed.split(sizes), strict=True):
            tensor.copy_(part.view(tensor.shape))

    return finish


def _start_mean(tensor: Tensor, comm: Comm) -> Finish:
    pending = comm.start_all_reduce_(tensor)

    def finish() -> None:
        pending.wait()
        tensor.div_(comm.size)

    return finish
