"""The sizes of a model that is set up, for the formulas of its traffic."""

from torch.optim import Optimizer

from ddp_agent.distributed.topology import Topology
from ddp_agent.distributed.traffic import RunSizes
from ddp_agent.sync.engine.flat import Flat
from ddp_agent.sync.engine.state_policies import count_moments


def run_sizes(flat: Flat, optimizer: Optimizer, topology: Topology, steps: int, *, uses_nodes: bool) -> RunSizes:
    """Return the sizes on which the traffic of a run of `steps` steps depends."""
    floating = [buffer.numel() for buffer in flat.others if buffer.is_floating_point()]
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
        moments=count_moments(optimizer, flat),
    )
