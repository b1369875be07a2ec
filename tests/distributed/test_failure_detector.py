"""Ranks that agree where to stop and who failed: threads around a store. Real processes are in test_faults_*.py."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event

import pytest

from ddp_agent.distributed import failure_detector
from ddp_agent.distributed.c10d import HashStore
from ddp_agent.distributed.failure_detector import FailureDetector, State
from ddp_agent.distributed.failure_report import Failure
from ddp_agent.distributed.heartbeat import Heartbeats, namespace
from ddp_agent.distributed.run_secret import SignedStore
from ddp_agent.distributed.stop_signals import SIGNALS
from ddp_agent.errors import PeerFailedError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("POLL_S", "HURRY_S"):
        monkeypatch.setattr(failure_detector, name, 0.01)
    monkeypatch.setattr(failure_detector, "PATIENCE_S", 0.5)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def reported() -> list[Failure]:
    """The failures that detectors passed to `on_failure`."""
    return []


@pytest.fixture
def detectors(reported: list[Failure]) -> Iterator[list[FailureDetector]]:
    store = SignedStore(HashStore(), "failures")
    made = [
        FailureDetector(store, rank=rank, world_size=3, timeout_s=60, on_failure=reported.append) for rank in range(3)
    ]
    yield made
    for detector in made:
        detector.close()


class Loop(threading.Thread):
    """A rank's: `meeting` stands for a collective every `period` steps; `pace_s` for how long its steps take."""

    def __init__(self, detector: FailureDetector, meeting: threading.Barrier, period: int, pace_s: float) -> None:
        super().__init__(daemon=True)
        self.detector, self.meeting, self.period, self.pace_s = detector, meeting, period, pace_s
        self.done = 0
        self.error: PeerFailedError | None = None

    def run(self) -> None:
        try:
            while not self.detector.stops_before(self.done + 1):
                time.sleep(self.pace_s)
                if (self.done + 1) % self.period == 0:
                    self.meeting.wait(timeout=20)
                self.done += 1
        except PeerFailedError as error:
            self.error = error


@pytest.mark.parametrize("period", [1, 7, 1000])
def test_all_stop_after_the_same_step_however_far_apart(detectors: list[FailureDetector], period: int) -> None:
    """Also those that are blocked in a collective, which the one that was asked still has to reach."""
    meeting = threading.Barrier(3)
    paces_s = (0.0001, 0.004, 0.001)
    loops = [Loop(detector, meeting, period, pace_s) for detector, pace_s in zip(detectors, paces_s, strict=True)]
    for detector in detectors:
        detector.start()
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
    assert {detector.stop_request for detector in detectors} == {"SIGTERM on rank 2"}, (
        "the last that listened to this process's signals"
    )


def test_without_a_signal_nothing_stops(detectors: list[FailureDetector]) -> None:
    for detector in detectors:
        detector.start()
    loops = [Loop(detector, threading.Barrier(1), 1000, 0.001) for detector in detectors]
    for loop in loops:
        loop.start()
    time.sleep(0.2)
    assert all(loop.is_alive() for loop in loops)
    detectors[1].fail("enough", 4, echo=False)
    for loop in loops:
        loop.join(timeout=20)


def test_what_was_told_first_is_what_all_hear(detectors: list[FailureDetector], reported: list[Failure]) -> None:
    for detector in detectors:
        detector.start()
    loops = [Loop(detector, threading.Barrier(1), 1000, 0.001) for detector in detectors]
    for loop in loops[1:]:
        loop.start()
    first = detectors[0].fail("loss is nan", 5, echo=False)
    second = detectors[1].fail("a bug", 4, echo=False)
    assert first == second == Failure(rank=0, step=0, code=5, text="loss is nan")
    for loop in loops[1:]:
        loop.join(timeout=20)
        assert loop.error is not None
        assert (str(loop.error), loop.error.rank, loop.error.exit_code) == ("loss is nan", 0, 5)
    assert reported == [first, first]


def test_an_echo_waits_for_its_cause(detectors: list[FailureDetector]) -> None:
    for detector in detectors:
        detector.start()
    cause = threading.Timer(0.1, detectors[2].fail, ("a bug", 4), {"echo": False})
    cause.start()
    assert detectors[0].fail("connection closed by peer", 4, echo=True).text == "a bug"


def test_an_echo_without_a_cause_is_the_cause(detectors: list[FailureDetector]) -> None:
    for detector in detectors:
        detector.start()
    assert detectors[0].fail("timed out", 4, echo=True) == Failure(rank=0, step=0, code=4, text="timed out")


def test_a_silent_rank_is_named_with_the_step_it_was_in() -> None:
    store = SignedStore(HashStore(), "failures")
    ranks = [FailureDetector(store, rank=rank, world_size=2, timeout_s=0.3) for rank in range(2)]
    ranks[1].stops_before(7)
    ranks[1]._send_heartbeat()
    ranks[0].start()
    deadline = time.monotonic() + 20
    while ranks[0].failure is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ranks[0].failure is not None
    assert (ranks[0].failure.rank, ranks[0].failure.step) == (1, 7)
    assert "no sign of life" in ranks[0].failure.text
    with pytest.raises(PeerFailedError, match="last seen in step 7"):
        ranks[0].stops_before(1)
    ranks[0].close()


def test_a_process_that_is_gone_is_seen_at_once() -> None:
    store = SignedStore(HashStore(), "failures")
    for rank in range(2):
        Heartbeats(store, rank, 2)
    assert Heartbeats(store, 0, 2).dead() is None
    child = multiprocessing.get_context("fork").Process(target=lambda: None)
    child.start()
    child.join()
    store.set("process/1", f"{namespace()} {child.pid}")
    lost = Heartbeats(store, 0, 2).dead()
    assert lost is not None and lost.rank == 1
    store.set("process/1", f"another-machine {child.pid}")
    assert Heartbeats(store, 0, 2).dead() is None


def test_a_signal_that_was_ignored_stays_ignored(detectors: list[FailureDetector]) -> None:
    """`nohup` lets a run outlive its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    detectors[0].start()
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.1)
    assert detectors[0]._signals.received is None
    os.kill(os.getpid(), signal.SIGUSR1)
    deadline = time.monotonic() + 20
    while detectors[0]._signals.received is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert detectors[0]._signals.received == signal.SIGUSR1


@pytest.mark.parametrize("asked", ["nobody", "this rank", "another"])
def test_after_the_run_signals_do_what_they_did(detectors: list[FailureDetector], asked: str) -> None:
    """Unless one came, to whomever: neither the second one of an impatient user nor torchrun's, which has seen another
    rank leave, may kill a rank that is about to leave in order."""
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    detectors[0].start()
    if asked == "this rank":
        os.kill(os.getpid(), signal.SIGTERM)
    if asked == "another":
        detectors[0]._store.set("asked", "SIGUSR1 on rank 1")
    while asked != "nobody" and not detectors[0].stop_request:
        time.sleep(0.01)
    detectors[0].close()
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == ([signal.SIGTERM] if asked == "nobody" else [])


def _begin_and_sleep(begun: Event) -> None:
    begun.set()
    time.sleep(600)


def test_a_forked_child_can_be_terminated_and_does_not_stop_the_run(detectors: list[FailureDetector]) -> None:
    detectors[0].start()
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    child = fork.Process(target=_begin_and_sleep, args=(begun,))
    child.start()
    assert begun.wait(20)
    child.terminate()
    child.join(timeout=20)
    assert child.exitcode == -signal.SIGTERM
    time.sleep(0.1)
    assert detectors[0]._signals.received is None


def test_a_detector_without_peers_stops_nothing_and_waits_for_nobody() -> None:
    detector = FailureDetector.alone()
    assert not detector.stops_before(1)
    begun = time.monotonic()
    assert detector.fail("a bug", 4, echo=True) == Failure(rank=0, step=1, code=4, text="a bug")
    assert time.monotonic() - begun < failure_detector.PATIENCE_S / 2
    detector.close()


def test_the_states_of_a_failure(detectors: list[FailureDetector]) -> None:
    """A failed collective is searched for, then reported; a peer's report ends both; closing ends all."""
    first, second, third = detectors
    first.start()
    states: list[State] = [first._state]

    def fail() -> None:
        first.fail("connection closed by peer", 4, echo=True)

    failing = threading.Thread(target=fail)
    failing.start()
    deadline = time.monotonic() + 20
    while failing.is_alive() and time.monotonic() < deadline:
        if first._state is not states[-1]:
            states.append(first._state)
        time.sleep(0.001)
    failing.join()
    states.append(first._state)
    second.start()
    while second.failure is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(PeerFailedError, match="closed by peer"):
        second.stops_before(1)
    assert second._state is State.FAILED
    assert third._state is State.TRAINING, "not started"
    first.close()
    states.append(first._state)
    assert states[:2] == [State.TRAINING, State.SEARCHING]
    assert states[-2:] == [State.FAILED, State.CLOSED]


def test_a_failure_ends_ranks_that_wait_for_the_last_step(detectors: list[FailureDetector]) -> None:
    """They have promised to begin no further step, and rank 2 dies before it promises."""
    for detector in detectors[:2]:
        detector.start()
    os.kill(os.getpid(), signal.SIGTERM)
    while not all(detector.stop_request for detector in detectors[:2]):
        time.sleep(0.01)
    threading.Timer(0.1, detectors[0].fail, ("a bug", 4), {"echo": False}).start()
    with pytest.raises(PeerFailedError, match="a bug"):
        detectors[1].stops_before(2)
