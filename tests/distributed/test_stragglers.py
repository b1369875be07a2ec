"""Waiting for others is told apart from moving bytes. Sleeps are long against what a collective takes here."""

import time
from typing import Any

import pytest
import torch
from rank_pool import RankPool

from ddp_agent.distributed import ledger, stragglers
from ddp_agent.distributed.comm import Comm, LocalComm
from ddp_agent.distributed.ledger import CommStats, Wait
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.stragglers import clock_ahead_s, settle_

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
    comm = world_comm()
    if ahead_s and comm.rank == 1:
        set_clock_ahead(ahead_s)
    try:
        comm.barrier()
        for _ in range(NAPS):
            late(comm, rank=1)
            comm.all_reduce_(torch.ones(10))
        return settled(comm)
    finally:
        ledger.time = stragglers.time = time  # type: ignore[attr-defined]


def set_clock_ahead(seconds: float) -> None:
    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return time.perf_counter() + seconds

    ledger.time = stragglers.time = Clock  # type: ignore[attr-defined, assignment]


@pytest.mark.parametrize("ahead_s", [0.0, 100.0, -3.0])
def test_who_came_in_time_waited_for_who_came_late(ranks3: RankPool, ahead_s: float) -> None:
    first, second, third = ranks3.run(meet, ahead_s)
    for punctual in (first, third):
        assert NAPS * NAP_S / 2 < punctual.straggler_s <= punctual.blocked_s
    assert 0 <= second.straggler_s < NAP_S / 2


def ahead(seconds: float) -> float:
    comm = world_comm()
    if comm.rank == 1:
        set_clock_ahead(seconds)
    try:
        return clock_ahead_s(comm)
    finally:
        ledger.time = stragglers.time = time  # type: ignore[attr-defined]


def test_clocks_are_compared(ranks2: RankPool) -> None:
    assert ranks2.run(ahead, 0.0) == [0.0, 0.0]
    rank_0, rank_1 = ranks2.run(ahead, 50.0)
    assert rank_0 == 0
    assert rank_1 == pytest.approx(50, abs=NAP_S / 2)


def settled_stamps(stamps: list[tuple[float, float, float]], senders: list[list[int]] | None = None) -> float:
    """Settle one collective, given when each rank launched it, began to wait for it, and continued."""
    comm = world_comm()
    launched, began, ended = map(float, stamps[comm.rank])
    wait = Wait(launched, began, ended, senders=senders[comm.rank] if senders else None)
    comm.ledger._waits[comm] = [wait]
    return settled(comm).straggler_s


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([(10, 10, 15), (14, 14, 15)], [4, 0]),  # bytes moved for the last second
        ([(10, 10, 15), (14, 14, 20)], [4, 0]),
        ([(10, 13, 15), (14, 14, 15)], [1, 0]),  # rank 0 computed until 13
        ([(10, 17, 18), (14, 14, 15)], [0, 0]),  # and here longer than rank 1 was late
        ([(10, 11, 12), (14, 14, 15)], [1, 0]),  # never more than it stood still
    ],
)
def test_waiting_ends_when_the_last_rank_has_launched(
    ranks2: RankPool, stamps: list[tuple[float, float, float]], expected: list[float]
) -> None:
    assert ranks2.run(settled_stamps, stamps) == pytest.approx(expected)


def test_only_a_sender_is_waited_for(ranks4: RankPool) -> None:
    stamps = [(10.0, 10.0, 15.0)] * 3 + [(14.0, 14.0, 15.0)]
    assert ranks4.run(settled_stamps, stamps, [[1], [0], [3], [2]]) == pytest.approx([0, 0, 4, 0])
    assert ranks4.run(settled_stamps, stamps) == pytest.approx([4, 4, 4, 0])  # control


def exchanged() -> list[Any]:
    comm = world_comm()
    comm.exchange(torch.ones(1), [comm.rank ^ 1], [comm.rank ^ 1])
    comm.all_reduce_(torch.ones(1))
    return [wait.senders for wait in comm.ledger.take_waits(comm)]


def test_an_exchange_remembers_its_senders(ranks2: RankPool) -> None:
    assert ranks2.run(exchanged) == [[[1], None], [[0], None]]


def settle_twice() -> list[float]:
    comm = world_comm()
    comm.barrier()
    late(comm, rank=1)
    comm.all_reduce_(torch.ones(10))
    first = settled(comm).straggler_s
    return [first, settled(comm).straggler_s]


def test_nothing_is_added_twice(ranks2: RankPool) -> None:
    for first, second in ranks2.run(settle_twice):
        assert first == second


def recorded(limit: int) -> list[int]:
    ledger.MAX_WAITS, before = limit, ledger.MAX_WAITS
    try:
        comm = world_comm()
        for _ in range(5):
            comm.all_reduce_(torch.ones(1))
        with comm.uncounted():
            comm.all_reduce_(torch.ones(1))
        return [len(comm.ledger.take_waits(comm)), len(comm.ledger.take_waits(comm))]
    finally:
        ledger.MAX_WAITS = before


def test_what_is_remembered_is_bounded_and_counted(ranks2: RankPool) -> None:
    assert ranks2.run(recorded, 3) == [[3, 0]] * 2
    assert ranks2.run(recorded, 100) == [[5, 0]] * 2


def test_a_rank_alone_waits_for_nobody() -> None:
    comm: Any = LocalComm()
    comm.all_reduce_(torch.ones(1))
    assert settled(comm) == CommStats()
