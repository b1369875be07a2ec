"""The account of communication, and the collectives of a rank that is alone."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from ddp_agent.distributed import ledger as ledger_module
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.ledger import CommError, CommStats, Ledger
from ddp_agent.distributed.process_group_comm import process_group, twin


class Clock:
    """A clock that moves by one second per look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        self.now_s += 1.0
        return self.now_s


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setattr(ledger_module, "time", Clock())
    return Ledger()


def test_a_launch_counts_messages_and_bytes(ledger: Ledger) -> None:
    wait = ledger.launch("group", torch.zeros(10), 0.75, messages=2, senders=[3])
    assert wait is not None and (wait.launched, wait.senders) == (1.0, [3])
    assert ledger.stats == CommStats(calls=2, payload_bytes=80, wire_bytes=60)


def test_blocked_time_is_added_and_kept_in_the_record(ledger: Ledger) -> None:
    wait = ledger.launch("group", torch.zeros(1), 1.0)
    with ledger.blocked(wait):
        pass
    assert wait is not None and (wait.began, wait.ended) == (2.0, 3.0)
    with ledger.blocked():
        pass
    assert ledger.settle().blocked_s == 2.0


def test_records_are_kept_per_group(ledger: Ledger) -> None:
    first, second = (ledger.launch(group, torch.zeros(1), 1.0) for group in ("a", "b"))
    assert ledger.launch(None, torch.zeros(1), 1.0) is not None, "counted, but not kept"
    assert (ledger.take_waits("a"), ledger.take_waits("b"), ledger.take_waits("a")) == ([first], [second], [])
    assert ledger.take_waits(None) == []


def test_nothing_is_counted_inside_uncounted_and_the_switch_comes_back(ledger: Ledger) -> None:
    def fail() -> None:
        with ledger.uncounted(), ledger.uncounted():
            assert ledger.launch("group", torch.zeros(1), 1.0) is None
            with ledger.blocked():
                raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert (ledger.stats, ledger.counting) == (CommStats(), True)


@pytest.mark.parametrize("counting", [True, False])
def test_a_runtime_error_of_torch_becomes_a_comm_error(ledger: Ledger, counting: bool) -> None:
    context = nullcontext() if counting else ledger.uncounted()
    with context, pytest.raises(CommError, match="closed by peer"), ledger.blocked():
        raise RuntimeError("Connection closed by peer")
    assert ledger.stats.blocked_s == 0.0, "a failed collective is no time of communication"


def test_a_rank_alone_exchanges_nothing() -> None:
    comm, tensor = LocalComm(), torch.arange(3.0)
    comm.all_reduce_(tensor)
    comm.broadcast_(tensor)
    comm.barrier()
    assert tensor.tolist() == [0, 1, 2]
    assert [it.tolist() for it in comm.all_gather(tensor)] == [[0, 1, 2]]
    received, pending = comm.start_all_to_all(tensor)
    pending.wait()
    assert received.tolist() == [0, 1, 2] and received.data_ptr() != tensor.data_ptr()
    assert comm.exchange(tensor, [], []) == []
    assert comm.split([[0]]) is comm
    assert (comm.rank, comm.size, comm.stats, process_group(comm)) == (0, 1, CommStats(), None)


def test_a_twin_counts_for_itself() -> None:
    comm: Any = LocalComm()
    other = twin(comm)
    assert (other.size, other.ledger is comm.ledger) == (1, False)
