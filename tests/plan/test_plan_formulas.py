"""Each formula of the cost model against numbers worked out by hand."""

import math
from typing import Any

import pytest

from ddp_agent.distributed.traffic import wire_bytes
from ddp_agent.plan.collectives import Cluster, Hop, all_reduce, collective, expected_max, ring, tree
from ddp_agent.plan.traffic import Load

ONE_EACH = Hop(message_s=1.0, byte_s=0.0)
BYTES = Hop(message_s=0.0, byte_s=1.0)


@pytest.mark.parametrize(
    ("algorithm", "ranks", "messages", "sent"),
    [
        *[(ring, 2, 2, 1000), (ring, 4, 6, 1500), (ring, 5, 8, 1600)],
        *[(tree, 2, 2, 1000), (tree, 4, 4, 2000), (tree, 5, 6, 2000)],
    ],
)
def test_all_reduce(algorithm, ranks: int, messages: float, sent: float) -> None:  # type: ignore[no-untyped-def]
    assert algorithm(ranks, 1000) == (messages, pytest.approx(sent))


@pytest.mark.parametrize(
    ("kind", "messages", "sent"),
    # 4 ranks, 1000 bytes: three packets; a quarter to each of the others; down a tree of two levels.
    [("all_reduce", 6, 1500), ("all_gather", 3, 3000), ("all_to_all", 1, 750), ("broadcast", 2, 1000)],
)
def test_collectives(kind, messages: float, sent: float) -> None:  # type: ignore[no-untyped-def]
    assert collective(kind, Cluster(4, ONE_EACH), 1000)[0] == messages
    assert collective(kind, Cluster(4, BYTES), 1000)[0] == pytest.approx(sent)
    assert wire_bytes(kind, 4, 1000) == pytest.approx(sent)
    assert collective(kind, Cluster(1, BYTES), 1000)[0] == wire_bytes(kind, 1, 1000) == 0


@pytest.mark.parametrize(("peers", "seconds"), [(1, 1000), (2, 2000 * 1.2)])
def test_neighbours_at_once_send_what_they_send_but_not_as_fast(peers: int, seconds: float) -> None:
    assert collective("exchange", Cluster(4, ONE_EACH), 1000, peers=peers)[0] == 1
    assert collective("exchange", Cluster(4, BYTES), 1000, peers=peers)[0] == pytest.approx(seconds)
    sent = Load("exchange", per_step=0.5, size_bytes=1000, peers=peers).sent_bytes
    assert (sent(4), sent(2), sent(1)) == (500 * peers, 500, 0)
    assert collective("exchange", Cluster(1, BYTES), 1000, peers=0)[0] == wire_bytes("exchange", 1, 1000) == 0


def near(seconds: float, algorithm: str) -> tuple[Any, str]:
    return pytest.approx(seconds), algorithm


def test_the_faster_all_reduce_depends_on_the_message() -> None:
    """64 ranks, 10 us a message, 1 ns a byte: a ring takes 126 messages for 1.97 S, a tree 12 for 2 S."""
    cluster = Cluster(64, Hop(1e-5, 1e-9))
    assert all_reduce(cluster, 1000, ("ring", "tree")) == near(12e-5 + 2e-6, "tree")
    assert all_reduce(cluster, 1e8, ("ring", "tree")) == near(126e-5 + 0.196875, "ring")
    assert all_reduce(cluster, 1000, ("ring",)) == near(126e-5 + 1.96875e-6, "ring")


def test_two_levels() -> None:
    """2 nodes of 4: in the node 6 messages and 1.5 S, between nodes 2 messages and S, which its ranks share."""
    link, node = Hop(1.0, 0.1), Hop(0.01, 0.001)
    cluster = Cluster(8, link, ranks_per_node=4, node=node)
    assert all_reduce(cluster, 1000, ("two-level",))[0] == pytest.approx(6 * 0.01 + 1500 * 0.001 + 2 * 1.0 + 1000 * 0.1)
    # A flat ring passes the link 14 times, with 1.75 S: its slowest hop is that between nodes.
    assert all_reduce(cluster, 1000, ("ring",))[0] == pytest.approx(14 * 1.0 + 1750 * 0.1)
    assert all_reduce(cluster, 1000, ("ring", "two-level"))[1] == "two-level"


def test_inside_one_node_the_link_is_not_passed() -> None:
    cluster = Cluster(4, Hop(1e9, 1e9), ranks_per_node=4, node=BYTES)
    assert collective("all_reduce", cluster, 1000)[0] == 1500
    assert collective("all_gather", cluster, 1000)[0] == 3000
    assert collective("all_to_all", cluster, 1000)[0] == 750
    assert collective("exchange", cluster, 1000, peers=2)[0] == 2000


def test_all_of_a_node_send_through_its_link() -> None:
    """All-to-all among 2 nodes of 4: each rank sends half of its tensor away; then the ring of shares passes once."""
    cluster = Cluster(8, BYTES, ranks_per_node=4)
    share = Load("all_gather", per_step=1, size_bytes=1000, sharded=True)
    assert collective("all_to_all", cluster, 1000)[0] == pytest.approx(4 * 500)
    assert share.seconds(cluster, ("ring",))[0] == pytest.approx(875)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    # In closed form, and by tables of normal order statistics.
    [
        *[(1, 0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))],
        *[(4, 1.02937537), (10, 1.53875273), (100, 2.50759364)],
    ],
)
def test_the_last_of_n_normal_draws(ranks: int, expected: float) -> None:
    assert expected_max(ranks) == pytest.approx(expected, abs=1e-7)


def test_the_last_of_many_nears_its_limit() -> None:
    shares = [expected_max(ranks) / math.sqrt(2 * math.log(ranks)) for ranks in (64, 1024, 10**6)]
    assert shares == sorted(shares) and 0.8 < shares[0] < shares[-1] < 1
