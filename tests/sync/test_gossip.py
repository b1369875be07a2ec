"""gossip: what its graphs do to the mean over ranks and to the distance between them."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from loops import Loop, apart, refusal, sgd, train
from rank_pool import RankPool
from torch import Tensor

from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.reducers import Cast, Dense
from ddp_agent.sync import Gossip, Independent, LocalSGD, SyncStrategy
from ddp_agent.sync.gossip import Graph


def measure_extremes() -> dict[str, float]:
    optimizer = sgd(momentum=0.9)
    local, alone = train(LocalSGD(period=1), optimizer=optimizer), train(Independent(), optimizer=optimizer)
    return {
        "complete": apart(train(Gossip(graph="complete", period=1), optimizer=optimizer), local),
        "empty": apart(train(Gossip(graph="empty", period=1), optimizer=optimizer), alone),
        "control": apart(train(Gossip(graph="ring", period=1), optimizer=optimizer), local),
        "control alone": apart(train(Gossip(graph="ring", period=1), optimizer=optimizer), alone),
    }


def test_everybody_is_averaging_and_nobody_is_independence(ranks4: RankPool) -> None:
    for distances in ranks4.run(measure_extremes):
        assert distances["complete"] == distances["empty"] == 0.0
        assert min(distances["control"], distances["control alone"]) > 1e-4


def mix(make: Callable[[], SyncStrategy], rounds: int) -> tuple[Tensor, list[float]]:
    """Return the mean's change, and the distance after each round without training. Ranks start far apart."""
    loop = Loop(make(), optimizer=sgd(lr=0.0))
    world = loop.topology.world
    loop.flat.parameters.mul_((world.rank + 1) * (-1) ** world.rank)
    started = torch.stack(world.all_gather(loop.weights))
    distances = [loop.sync.consensus_distance()]
    for _ in range(rounds):
        loop.run(1)
        distances.append(loop.sync.consensus_distance())
    drift = (torch.stack(world.all_gather(loop.weights)).mean(0) - started.mean(0)).abs().max()
    return drift, distances


GRAPHS: tuple[Graph, ...] = ("ring", "exponential", "complete")


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_mean_is_preserved(ranks4: RankPool, graph: Graph) -> None:
    for drift, _ in ranks4.run(mix, partial(Gossip, graph=graph, period=1), 5):
        assert drift < 1e-14


class Star(Gossip):
    """Rank 0 takes from everybody, everybody from rank 0. Each row of weights sums to 1, the columns do not."""

    def _shares(self, rank: int, size: int) -> dict[int, float]:
        return dict.fromkeys(range(1, size), 1 / size) if rank == 0 else {0: 1 / 2}


def test_control_a_star_with_row_stochastic_weights_drifts(ranks4: RankPool) -> None:
    for drift, _ in ranks4.run(mix, partial(Star, period=1), 5):
        assert drift > 0.1


def test_on_a_ring_the_distance_shrinks_by_the_second_eigenvalue(ranks4: RankPool) -> None:
    """(1 + 2 cos(2 pi j / 4)) / 3 is 1/3 for j = 1 and -1/3 for j = 2: every disagreement shrinks to a third."""
    for _, distances in ranks4.run(mix, partial(Gossip, graph="ring", period=1), 4):
        for before, after in pairwise(distances):
            assert after == pytest.approx(before / 3, rel=1e-9)


def test_one_peer_a_round_is_the_exact_mean_after_log2_rounds(ranks4: RankPool) -> None:
    for _, distances in ranks4.run(mix, partial(Gossip, graph="exponential", period=1), 2):
        assert distances[1] > 0.1
        assert distances[2] < 1e-14


def test_peers_take_turns_whatever_the_period(ranks4: RankPool) -> None:
    """Turns are counted in rounds: counted in steps, a period of 2 would always choose the peer 1 rank away."""
    for _, distances in ranks4.run(mix, partial(Gossip, graph="exponential", period=2), 4):
        assert distances[2] > 0.1
        assert distances[4] < 1e-14


def count(graph: Graph) -> tuple[int, int, int]:
    loop = Loop(Gossip(graph=graph, period=1)).run(3)
    stats = loop.topology.world.stats
    return stats.calls, stats.payload_bytes, stats.wire_bytes


@pytest.mark.parametrize(("graph", "peers"), [("ring", 2), ("exponential", 1), ("empty", 0)])
def test_each_neighbour_costs_the_model_once(ranks4: RankPool, graph: Graph, peers: int) -> None:
    sent = 3 * peers * 39 * 8
    assert ranks4.run(count, graph) == [(3 * peers, sent, sent)] * 4


@pytest.mark.parametrize("size", [3, 6])
def test_a_graph_that_does_not_fit_is_refused(size: int) -> None:
    refused = refusal(Gossip(graph="exponential", period=1), None, size)
    assert refused is not None
    assert f"found exponential among {size} ranks, expected a power of two such as {size // 3 * 2} or" in refused
    assert refusal(Gossip(graph="ring", period=1), None, size) is None


def refused_in_a_group() -> str:
    try:
        Loop(Gossip(graph="exponential", period=1))
    except ValueError as error:
        return str(error)
    return ""


def test_it_never_reaches_an_exchange(ranks3: RankPool) -> None:
    assert all("power of two" in message for message in ranks3.run(refused_in_a_group))


def test_lossy_reducers_are_refused() -> None:
    assert "reducer=dense" in str(refusal(Gossip(period=1), Cast(dtype="bf16")))
    assert refusal(Gossip(period=1), Dense()) is None


def order_of_an_exchange() -> list[str]:
    posted: list[str] = []
    post = dist.batch_isend_irecv

    def noted(operations: list[Any]) -> Any:
        posted.extend(operation.op.__name__ for operation in operations)
        return post(operations)

    other = 1 - dist.get_rank()
    with mock.patch.object(dist, "batch_isend_irecv", noted):
        world_comm().exchange(torch.ones(3), receivers=[other], senders=[other])
    return posted


def test_a_rank_is_ready_to_receive_before_it_sends(ranks2: RankPool) -> None:
    """Else the word that it is would wait in a slow link behind its own bytes."""
    assert ranks2.run(order_of_an_exchange) == [["irecv", "isend"]] * 2
