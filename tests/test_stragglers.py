"""Waiting for others is told apart from moving bytes. Sleeps are long against what a collective takes here."""

import time
from typing import Any

import pytest
import torch
from rank_pool import RankPool

from ddp_agent import comm as comm_module
from ddp_agent import stragglers
from ddp_agent.comm import Comm, CommStats
from ddp_agent.stragglers import clock_ahead_s, settle_

NAP_S = 0.2
NAPS = 2


def late(comm: Comm, rank: int) -> None:
    if comm.rank == rank:
        time.sleep(NAP_S)


def settled(comm: Comm) -> CommStats:
    settle_(comm)
    return comm.stats


def meet(ahead_s: float = 0.0) -> CommStats:
    """Rank 1 comes late to every all-reduce; its clock is ahead of the others' by `ahead_s`."""
    comm = Comm.world()
    if ahead_s and comm.rank == 1:
        set_clock_ahead(ahead_s)
    try:
        comm.barrier()
        for _ in range(NAPS):
            late(comm, rank=1)
            comm.all_reduce_(torch.ones(10))
        return settled(comm)
    finally:
        comm_module.time = stragglers.time = time  # type: ignore[attr-defined]


def set_clock_ahead(seconds: float) -> None:
    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return time.perf_counter() + seconds

    comm_module.time = stragglers.time = Clock  # type: ignore[attr-defined, assignment]


@pytest.mark.parametrize("ahead_s", [0.0, 100.0, -3.0])
def test_who_came_in_time_waited_for_who_came_late(ranks3: RankPool, ahead_s: float) -> None:
    first, second, third = ranks3.run(meet, ahead_s)
    for punctual in (first, third):
        assert NAPS * NAP_S / 2 < punctual.straggler_s <= punctual.blocked_s
    assert 0 <= second.straggler_s < NAP_S / 2


def ahead(seconds: float) -> float:
    comm = Comm.world()
    if comm.rank == 1:
        set_clock_ahead(seconds)
    try:
        return clock_ahead_s(comm)
    finally:
        comm_module.time = stragglers.time = time  # type: ignore[attr-defined]


def test_clocks_are_compared(ranks2: RankPool) -> None:
    assert ranks2.run(ahead, 0.0) == [0.0, 0.0]
    rank_0, rank_1 = ranks2.run(ahead, 50.0)
    assert rank_0 == 0
    assert rank_1 == pytest.approx(50, abs=NAP_S / 2)


def hide() -> CommStats:
    """Rank 1 launches late, but rank 0 computes longer than that."""
    comm = Comm.world()
    comm.barrier()
    late(comm, rank=1)
    pending = comm.start_all_reduce_(torch.ones(10))
    if comm.rank == 0:
        time.sleep(2 * NAP_S)
    pending.wait()
    return settled(comm)


def test_a_straggler_hidden_behind_compute_costs_nothing(ranks2: RankPool) -> None:
    rank_0, _ = ranks2.run(hide)
    assert rank_0.straggler_s < NAP_S / 2


def exchange_in_pairs() -> CommStats:
    comm = Comm.world()
    comm.barrier()
    late(comm, rank=3)
    peer = [comm.rank ^ 1]
    comm.exchange(torch.ones(10), peer, peer)
    return settled(comm)


def test_only_a_sender_is_waited_for(ranks4: RankPool) -> None:
    waited = [stats.straggler_s for stats in ranks4.run(exchange_in_pairs)]
    assert waited[2] > NAP_S / 2
    assert max(waited[0], waited[1], waited[3]) < NAP_S / 2


def settle_twice() -> list[float]:
    comm = Comm.world()
    comm.barrier()
    late(comm, rank=1)
    comm.all_reduce_(torch.ones(10))
    first = settled(comm).straggler_s
    return [first, settled(comm).straggler_s]


def test_nothing_is_added_twice(ranks2: RankPool) -> None:
    for first, second in ranks2.run(settle_twice):
        assert first == second


def recorded(limit: int) -> list[int]:
    comm_module.MAX_WAITS, before = limit, comm_module.MAX_WAITS
    try:
        comm = Comm.world()
        for _ in range(5):
            comm.all_reduce_(torch.ones(1))
        with comm.uncounted():
            comm.all_reduce_(torch.ones(1))
        return [len(comm.take_waits()), len(comm.take_waits())]
    finally:
        comm_module.MAX_WAITS = before


def test_what_is_remembered_is_bounded_and_counted(ranks2: RankPool) -> None:
    assert ranks2.run(recorded, 3) == [[3, 0]] * 2
    assert ranks2.run(recorded, 100) == [[5, 0]] * 2


def test_a_rank_alone_waits_for_nobody() -> None:
    comm: Any = Comm()
    comm.all_reduce_(torch.ones(1))
    assert settled(comm) == CommStats()
