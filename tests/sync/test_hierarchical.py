"""hierarchical: between allreduce and local_sgd, by what a node is."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from loops import Loop, apart, sgd, train
from rank_pool import RankPool
from torch.optim import AdamW

from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.ledger import CudaTimer
from ddp_agent.distributed.topology import Topology
from ddp_agent.sync import AllReduce, Hierarchical, LocalSGD

TOLERANCE = 1e-12


def nodes(ranks: int) -> Topology:
    return Topology.create(ranks_per_node=ranks)


def measure_extremes() -> dict[str, float]:
    momentum = sgd(momentum=0.9)

    def adamw(parameters: object) -> AdamW:
        return AdamW(parameters, lr=0.05)  # type: ignore[arg-type]

    def hierarchical(node_period: int, ranks: int, optimizer: object) -> torch.Tensor:
        sync = Hierarchical(node_period=node_period, global_period=4)
        return train(sync, 10, optimizer=optimizer, topology=nodes(ranks))

    return {
        "one node": apart(hierarchical(1, 4, adamw), train(AllReduce(), 10, optimizer=adamw)),
        "one node, parameters": apart(hierarchical(2, 4, momentum), train(LocalSGD(period=2), 10, optimizer=momentum)),
        "one rank a node": apart(hierarchical(1, 1, adamw), train(LocalSGD(period=4), 10, optimizer=adamw)),
        "control, allreduce": apart(hierarchical(1, 2, momentum), train(AllReduce(), 10, optimizer=momentum)),
        "control, local_sgd": apart(hierarchical(1, 2, momentum), train(LocalSGD(period=4), 10, optimizer=momentum)),
        "control, node": apart(hierarchical(2, 2, momentum), train(LocalSGD(period=4), 10, optimizer=momentum)),
    }


def test_one_node_is_allreduce_and_one_rank_a_node_is_local_sgd(ranks4: RankPool) -> None:
    for distances in ranks4.run(measure_extremes):
        for name, distance in distances.items():
            assert (distance > 1e-4) if name.startswith("control") else (distance < TOLERANCE), name


def groups_of(node_period: int) -> list[list[bool]]:
    """Return for each of 8 steps whether rank 0 equals its neighbour on the node, and a rank of the other node."""
    loop = Loop(Hierarchical(node_period=node_period, global_period=4), topology=nodes(2))
    world = loop.topology.world
    seen = []
    for _ in range(8):
        everybody = world.all_gather(loop.run(1).weights)
        seen.append([torch.equal(everybody[0], everybody[1]), torch.equal(everybody[0], everybody[2])])
    return seen


@pytest.mark.parametrize("node_period", [1, 2, 3])
def test_nodes_agree_often_and_all_ranks_rarely(ranks4: RankPool, node_period: int) -> None:
    expected = [[step % node_period == 0 or step % 4 == 0, step % 4 == 0] for step in range(1, 9)]
    assert ranks4.run(groups_of, node_period) == [expected] * 4


def mean_of_means() -> float:
    topology = nodes(2)
    mine = torch.tensor([1.0, -3.0, 0.5], dtype=torch.float64) * (topology.world.rank + 1)
    flat, nested = mine.clone(), mine.clone()
    for tensor, groups in ((flat, [topology.world]), (nested, [topology.node, topology.across])):
        for group in groups:
            group.all_reduce_(tensor)
            tensor.div_(group.size)
    return apart(flat, nested)


def test_the_mean_over_equal_nodes_means_is_the_mean(ranks4: RankPool) -> None:
    assert max(ranks4.run(mean_of_means)) < 1e-15


def count(node_period: int) -> tuple[int, int]:
    stats = Loop(Hierarchical(node_period=node_period, global_period=4), topology=nodes(2)).run(4).topology.world.stats
    return stats.payload_bytes, stats.wire_bytes


@pytest.mark.parametrize(("node_period", "in_nodes"), [(1, 4), (2, 1), (3, 1), (4, 0)])
def test_bytes_of_both_levels_are_counted(ranks4: RankPool, node_period: int, in_nodes: int) -> None:
    """So many means among the 2 ranks of a node, and everybody's after step 4 among 4. Gradients at every step."""
    size = 39 * 8
    assert ranks4.run(count, node_period) == [((in_nodes + 1) * size, in_nodes * size + size * 3 // 2)] * 4


def test_a_node_that_waits_for_all_is_refused() -> None:
    with pytest.raises(ValueError, match="node_period: found 8 beside global_period 4"):
        Hierarchical(node_period=8, global_period=4)


def split_badly() -> str:
    try:
        nodes(3)
    except ValueError as error:
        return str(error)
    return ""


def test_nodes_that_do_not_divide_the_world_are_refused(ranks4: RankPool) -> None:
    assert (
        ranks4.run(split_badly)
        == ["ranks_per_node: found 3, expected a divisor of the world size 4, one of [1, 2, 4]"] * 4
    )
    assert LocalComm().size == 1


class Stamp:
    """Stand-in for a CUDA event: the time between two is known once the GPU has reached them."""

    def synchronize(self) -> None: ...

    def elapsed_time(self, later: "Stamp") -> float:
        return 500.0  # ms


class FakeCudaTimer(CudaTimer):
    def now(self) -> Any:
        return Stamp()


def measure_settled() -> list[float]:
    topology = nodes(2)
    topology.world.ledger.timer = FakeCudaTimer()
    for comm in (topology.world, topology.node, topology.across):
        comm.all_reduce_(torch.zeros(1))
    return [
        topology.world.stats.blocked_s,
        topology.world.ledger.settle().blocked_s,
        topology.world.ledger.settle().blocked_s,
    ]


def test_what_a_gpu_waited_for_in_any_group_is_counted(ranks4: RankPool) -> None:
    assert ranks4.run(measure_settled) == [[0.0, 1.5, 1.5]] * 4


def uncounted_in_groups() -> list[int]:
    """Calls counted: inside world.uncounted(), inside node.uncounted(), and outside."""
    topology = nodes(2)
    part = topology.among((0, 1, 2))
    groups = [topology.world, topology.node, topology.across, *([part.world, part.node] if part else [])]
    calls = []
    for context in (topology.world.uncounted, topology.node.uncounted, nullcontext):
        before = topology.world.stats.calls
        with context():
            for group in groups:
                group.all_reduce_(torch.zeros(1))
        calls.append(topology.world.stats.calls - before)
    return calls


def test_a_group_shares_the_counting_switch_of_its_world(ranks4: RankPool) -> None:
    """A rehearsal of `hierarchical` is not counted, though it also averages inside nodes."""
    assert ranks4.run(uncounted_in_groups) == [[0, 0, 5], [0, 0, 5], [0, 0, 4], [0, 0, 3]]
