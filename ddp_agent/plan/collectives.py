"""Costs of collectives by formula: messages that follow one another, and bytes through one link.

In Hockney's model a message takes `message_s` and each of its bytes `byte_s`. Messages that leave together count as
one. Below, n is the number of ranks and S the size of the tensor in bytes.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ddp_agent.distributed.traffic import Kind

Algorithm = Literal["ring", "tree", "two-level"]
# An exchange with several neighbours on other nodes takes longer than its bytes by this factor, most likely because
# flows cross in every link and TCP does not share the link evenly. Measured in netlab with 0.88 MB to each of two
# neighbours: 1.27 at 50 Mbit/s, 1.20 at 100, 1.16 at 300 (4 nodes), 1.19 at 100 (6 nodes). A ring all-reduce took 1.01
# at 50 and 100.
UNEVEN = 1.2


@dataclass(frozen=True)
class Hop:
    """The connection between two ranks: seconds per message and per byte."""

    message_s: float
    byte_s: float

    def seconds(self, messages: float, sent_bytes: float) -> float:
        """Return the time of so many messages and bytes."""
        return messages * self.message_s + sent_bytes * self.byte_s


@dataclass(frozen=True)
class Cluster:
    """Ranks on nodes. `node` connects the ranks of a node; `link` connects nodes, and the ranks of a node share it."""

    ranks: int
    link: Hop
    ranks_per_node: int = 1
    node: Hop = Hop(0.0, 0.0)

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        return math.ceil(self.ranks / self.ranks_per_node)

    @property
    def slowest(self) -> Hop:
        """The slowest connection that the traffic of all ranks has to pass."""
        return self.link if self.nodes > 1 else self.node


def ring(ranks: int, size_bytes: float) -> tuple[float, float]:
    """Return messages 2 (n - 1) and bytes 2 (n - 1)/n S: a reduce-scatter, then an all-gather."""
    return 2.0 * (ranks - 1), 2 * (ranks - 1) / ranks * size_bytes


def tree(ranks: int, size_bytes: float) -> tuple[float, float]:
    """Return messages 2 ceil(log2 n) and bytes 2 S (S for two ranks).

    Half of the tensor goes up and down each of two trees, as in NCCL.
    """
    return 2.0 * math.ceil(math.log2(ranks)), min(ranks - 1, 2) * size_bytes


def all_reduce(cluster: Cluster, size_bytes: float, among: tuple[Algorithm, ...]) -> tuple[float, Algorithm]:
    """Return the seconds of the fastest algorithm, and the algorithm."""
    return min((_all_reduce_s(cluster, size_bytes, algorithm), algorithm) for algorithm in among)


def _all_reduce_s(cluster: Cluster, size_bytes: float, algorithm: Algorithm) -> float:
    if cluster.ranks == 1:
        return 0.0
    if algorithm == "two-level":  # between nodes each rank has a share of the tensor, and a node's ranks share the link
        inside_s = cluster.node.seconds(*ring(min(cluster.ranks, cluster.ranks_per_node), size_bytes))
        return inside_s + cluster.link.seconds(*ring(cluster.nodes, size_bytes))
    return cluster.slowest.seconds(*(tree if algorithm == "tree" else ring)(cluster.ranks, size_bytes))


def collective(
    kind: Kind, cluster: Cluster, size_bytes: float, *, peers: int = 1, among: tuple[Algorithm, ...] = ("ring",)
) -> tuple[float, Algorithm | None]:
    """Return the seconds of a collective, and its algorithm where there is a choice."""
    ranks, hop = cluster.ranks, cluster.slowest
    if ranks == 1:
        return 0.0, None
    if kind == "all_reduce":
        return all_reduce(cluster, size_bytes, among)
    if kind == "all_gather":  # in a ring: one flow leaves each node
        return hop.seconds(ranks - 1, (ranks - 1) * size_bytes), None
    if kind == "exchange":
        uneven = UNEVEN if peers > 1 and cluster.nodes > 1 else 1.0
        return hop.seconds(1, uneven * peers * size_bytes), None
    if kind == "broadcast":  # down a tree
        return hop.seconds(math.ceil(math.log2(ranks)), size_bytes), None
    away = ranks - cluster.ranks_per_node if cluster.nodes > 1 else ranks - 1
    abreast = cluster.ranks_per_node if cluster.nodes > 1 else 1  # all of a node's ranks send to all others
    return hop.seconds(1, abreast * away / ranks * size_bytes), None


@cache
def expected_max(ranks: int) -> float:
    """Return the expected maximum of n standard normal draws.

    The last of n equal ranks comes so many deviations later than the average. The maximum is the integral of
    x n phi(x) Phi(x)^(n-1): 0.564 for 2, 1.03 for 4, 3.25 for 1024, about sqrt(2 ln n) for many.
    """
    step, low, high = 1 / 256, -9.0, 12.0
    total = 0.0
    for index in range(round((high - low) / step)):
        x = low + index * step
        below = 0.5 * math.erfc(-x / math.sqrt(2))
        if below > 0:
            total += x * math.exp(-x * x / 2 + (ranks - 1) * math.log(below))
    return ranks * total * step / math.sqrt(2 * math.pi)
