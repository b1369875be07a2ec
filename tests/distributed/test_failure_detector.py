"""Ranks that agree where to stop and who failed: threads around a store. Real processes are in test_faults_*.py."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event

import pytest

from ddp_agent.distributed import failure_detector as watching
from ddp_agent.distributed.c10d import HashStore
from ddp_agent.distributed.failure_detector import Failure, NullWatch, Watch
from ddp_agent.distributed.heartbeat import Signs
from ddp_agent.errors import PeerFailedError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("POLL_S", "HURRY_S"):
        monkeypatch.setattr(watching, name, 0.01)
    monkeypatch.setattr(watching, "PATIENCE_S", 0.5)
    before = {number: signal.getsignal(number) for number in watching.SIGNALS}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def watches() -> Iterator[list[Watch]]:
    store = HashStore()
    made = [Watch(store, rank=rank, world_size=3, timeout_s=60) for rank in range(3)]
    yield made
    for watch in made:
        watch.close()


class Loop(threading.Thread):
    """A rank's: `meeting` stands for a collective every `period` steps; `pace_s` for how long its steps take."""

    def __init__(self, watch: Watch, meeting: threading.Barrier, period: int, pace_s: float) -> None:
        super().__init__(daemon=True)
        self.watch, self.meeting, self.period, self.pace_s = watch, meeting, period, pace_s
        self.done = 0
        self.error: PeerFailedError | None = None

    def run(self) -> None:
        try:
            while not self.watch.stops_before(self.done + 1):
                time.sleep(self.pace_s)
                if (self.done + 1) % self.period == 0:
                    self.meeting.wait(timeout=20)
                self.done += 1
        except PeerFailedError as error:
            self.error = error


@pytest.mark.parametrize("period", [1, 7, 1000])
def test_all_stop_after_the_same_step_however_far_apart(watches: list[Watch], period: int) -> None:
    """Also those that are blocked in a collective, which the one that was asked still has to reach."""
    meeting = threading.Barrier(3)
    loops = [
        Loop(watch, meeting, period, pace_s) for watch, pace_s in zip(watches, (0.0001, 0.004, 0.001), strict=True)
    ]
    for watch in watches:
        watch.start()
    for loop in loops:
        loop.start()
    time.sleep(0.1)
    begun = [loop.done for loop in loops]
    os.kill(os.getpid(), signal.SIGTERM)
    for loop in loops:
        loop.join(timeout=20)
        assert not loop.is_alive()
    assert len({loop.done for loop in loops}) == 1
    assert loops[0].done >= max(begun)
    assert loops[0].error is None
    assert {watch.asked for watch in watches} == {"SIGTERM on rank 2"}, (
        "the last that listened to this process's signals"
    )


def test_without_a_signal_nothing_stops(watches: list[Watch]) -> None:
    for watch in watches:
        watch.start()
    loops = [Loop(watch, threading.Barrier(1), 1000, 0.001) for watch in watches]
    for loop in loops:
        loop.start()
    time.sleep(0.2)
    assert all(loop.is_alive() for loop in loops)
    watches[1].fail("enough", 4, echo=False)
    for loop in loops:
        loop.join(timeout=20)


def test_what_was_told_first_is_what_all_hear(watches: list[Watch]) -> None:
    told: list[Failure] = []
    for watch in watches:
        watch.on_failure = told.append
        watch.start()
    loops = [Loop(watch, threading.Barrier(1), 1000, 0.001) for watch in watches]
    for loop in loops[1:]:
        loop.start()
    first = watches[0].fail("loss is nan", 5, echo=False)
    second = watches[1].fail("a bug", 4, echo=False)
    assert first == second == Failure(rank=0, step=0, code=5, text="loss is nan")
    for loop in loops[1:]:
        loop.join(timeout=20)
        assert loop.error is not None
        assert (str(loop.error), loop.error.rank, loop.error.exit_code) == ("loss is nan", 0, 5)
    assert told == [first, first]


def test_an_echo_waits_for_its_cause(watches: list[Watch]) -> None:
    for watch in watches:
        watch.start()
    cause = threading.Timer(0.1, watches[2].fail, ("a bug", 4), {"echo": False})
    cause.start()
    assert watches[0].fail("connection closed by peer", 4, echo=True).text == "a bug"


def test_an_echo_without_a_cause_is_the_cause(watches: list[Watch]) -> None:
    for watch in watches:
        watch.start()
    assert watches[0].fail("timed out", 4, echo=True) == Failure(rank=0, step=0, code=4, text="timed out")


def test_a_silent_rank_is_named_with_the_step_it_was_in() -> None:
    store = HashStore()
    ranks = [Watch(store, rank=rank, world_size=2, timeout_s=0.3) for rank in range(2)]
    ranks[1].stops_before(7)
    ranks[1]._show()
    ranks[0].start()
    assert ranks[0]._settled.wait(20)
    assert ranks[0].failure is not None
    assert (ranks[0].failure.rank, ranks[0].failure.step) == (1, 7)
    assert "no sign of life" in ranks[0].failure.text
    with pytest.raises(PeerFailedError, match="last seen in step 7"):
        ranks[0].stops_before(1)
    ranks[0].close()


def test_a_process_that_is_gone_is_seen_at_once() -> None:
    store = HashStore()
    alive, gone = Signs(store, 0, 2), Signs(store, 1, 2)
    assert alive.dead() is None
    child = multiprocessing.get_context("fork").Process(target=lambda: None)
    child.start()
    child.join()
    store.set("place/1", f"{gone._namespace} {child.pid}")
    lost = Signs(store, 0, 2).dead()
    assert lost is not None and lost[0] == 1
    store.set("place/1", f"another-machine {child.pid}")
    assert Signs(store, 0, 2).dead() is None


def test_a_signal_that_was_ignored_stays_ignored(watches: list[Watch]) -> None:
    """`nohup` lets a run outlive its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    watches[0].start()
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.1)
    assert watches[0]._signal is None
    os.kill(os.getpid(), signal.SIGUSR1)
    deadline = time.monotonic() + 20
    while watches[0]._signal is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert watches[0]._signal == signal.SIGUSR1


@pytest.mark.parametrize("asked", ["nobody", "this rank", "another"])
def test_after_the_run_signals_do_what_they_did(watches: list[Watch], asked: str) -> None:
    """Unless one came, to whomever: neither the second one of an impatient user nor torchrun's, which has seen another
    rank leave, may kill a rank that is about to leave in order."""
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    watches[0].start()
    if asked == "this rank":
        os.kill(os.getpid(), signal.SIGTERM)
    if asked == "another":
        watches[0]._store.compare_set("asked", "", "SIGUSR1 on rank 1")
    while asked != "nobody" and not watches[0].asked:
        time.sleep(0.01)
    watches[0].close()
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == ([signal.SIGTERM] if asked == "nobody" else [])


def _begin_and_sleep(begun: Event) -> None:
    begun.set()
    time.sleep(600)


def test_a_forked_child_can_be_terminated_and_does_not_stop_the_run(watches: list[Watch]) -> None:
    watches[0].start()
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    child = fork.Process(target=_begin_and_sleep, args=(begun,))
    child.start()
    assert begun.wait(20)
    child.terminate()
    child.join(timeout=20)
    assert child.exitcode == -signal.SIGTERM
    time.sleep(0.1)
    assert watches[0]._signal is None


def test_nobody_watches_without_a_store() -> None:
    watch = NullWatch()
    assert not watch.stops_before(1)
    assert watch.fail("a bug", 4, echo=False) is None
    watch.close()
