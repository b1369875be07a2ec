"""Policies for a model's buffers and the optimizer's state when parameters are synchronised."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.topology import Topology
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
    if policy == "reset":
        for parameter in flat.named.values():
            optimizer.state.pop(parameter, None)
    elif policy == "average" and (moments := _moments(optimizer, flat, comm)):
        _start_packed(moments, moments[0].dtype, "mean", comm)()


def optimizer_traffic(policy: OptimizerPolicy, run: RunSizes) -> list[Collective]:
    """Return the collectives of `merge_optimizer_state_`."""
    sizes = [8, *([run.moments * run.itemsize] if run.moments else [])] if policy == "average" else []
    return [Collective(kind="all_reduce", payload_bytes=size, ranks=run.ranks) for size in sizes]


def run_sizes(flat: Flat, optimizer: Optimizer, topology: Topology, steps: int, *, uses_nodes: bool) -> RunSizes:
    """Return the sizes on which the traffic of a run of `steps` steps depends."""
    floating = [buffer.numel() for buffer in flat.others if buffer.is_floating_point()]
    states, names = _states(optimizer, flat)
    return RunSizes(
        steps=steps,
        ranks=topology.world.size,
        ranks_per_node=topology.node.size if uses_nodes else topology.ranks_per_node,
        names=list(flat.named),
        shapes=flat.shapes,
        trained_shapes=[parameter.shape for parameter in flat.named.values() if parameter.requires_grad],
        itemsize=flat.parameters.element_size(),
        buffer_numbers=flat.buffers.numel(),
        in_one_piece=len(flat.stretches) == 1,
        other_buffer_bytes=[buffer.nbytes for buffer in flat.others],
        floating_numbers=sum(floating),
        integer_numbers=sum(buffer.numel() for buffer in flat.others) - sum(floating),
        moments=len(names) * sum(parameter.numel() for parameter, _ in states),
    )


def _moments(optimizer: Optimizer, flat: Flat, comm: Comm) -> list[Tensor]:
    """Return the state tensors in parameter order, and zeros for a parameter without state (it had no gradient yet).

    Ranks must send the same shapes. The zeros are not stored: the optimizer would take them for its own state.
    """
    states, names = _states(optimizer, flat)
    # A rank without any gradient so far does not know the names of the moments, and needs only their number.
    most = torch.tensor([len(names)], device=comm.device)
    comm.all_reduce_(most, "max")  # 8 bytes, for which the host waits
    slots = [*names, *range(int(most) - len(names))]
    return [state.get(slot, torch.zeros_like(p)) for p, state in states for slot in slots]


def _states(optimizer: Optimizer, flat: Flat) -> tuple[list[tuple[Tensor, dict[str, Any]]], list[str]]:
    """Return each parameter with its state, and the names of the entries in its shape (moments), sorted."""
    own = set(flat.named.values())
    states = [(p, optimizer.state.get(p, {})) for group in optimizer.param_groups for p in group["params"] if p in own]
    shaped = [(name, value, p) for p, state in states for name, value in state.items() if isinstance(value, Tensor)]
    return states, sorted({name for name, value, p in shaped if value.shape == p.shape and value.dim() > 0})


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
