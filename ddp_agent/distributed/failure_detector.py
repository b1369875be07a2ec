"""Threads beside training, by which ranks tell each other what no collective can: stop, I failed, I am alive.

A flag reduced in every step would do it too, but it would end what local modes are for: steps without the others. Here
every rank sends a heartbeat to the store twice a second (about 0.2 ms each), and the loop compares two numbers per
step.

Stopping. Ranks must leave after the same step, though they may be a period apart and blocked in collectives that wait
for one another. So each rank promises, without waiting for its loop, to begin no step beyond the next one. All stop
after the latest step that was promised: no rank is further by then, and a rank that waits in a collective gets what it
waits for.

Failing. A rank reports its failure before it closes its connections, so the first report in the store is the cause and
everything that peers see later is an echo. A rank that dies reports nothing, but its heartbeats end. Those of a rank
whose main thread hangs go on: they say where that thread is, and the rank that the others wait for is named.

Patience. A rank that is slow is not dead. Long activities have a limit of their own. While the run is asked to stop, a
rank that is silent has the launcher's grace period to come back.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto

from ddp_agent.distributed.c10d import HashStore
from ddp_agent.distributed.failure_report import Failure, parse_step
from ddp_agent.distributed.heartbeat import SILENCE_S, Heartbeats
from ddp_agent.distributed.progress import Progress
from ddp_agent.distributed.run_secret import SignedStore
from ddp_agent.distributed.standstill import AwakeClock
from ddp_agent.distributed.stop_signals import SignalListener, parse_request

POLL_S = 0.5
HURRY_S = 0.1  # instead of POLL_S while the ranks stop or fail
PATIENCE_S = 4.5  # for the cause of a collective's failure to be found
GRACE_S = 3.0  # for the loop to reach a step's end after a peer failed; it may be blocked and never get there
LINGER_S = 2.0  # so that torchrun sees the rank that failed first before its echoes

_log = logging.getLogger(__name__)


class State(Enum):
    """Knowledge of one rank about failures."""

    TRAINING = auto()
    SEARCHING = auto()  # a collective failed here: the rank that caused it is searched
    REPORTING = auto()  # this rank fails, and its report is about to be sent
    FAILED = auto()  # the failure that ends the run is known
    CLOSED = auto()


class FailureDetector:
    """One rank's failure detector. `store` is shared by the detectors of all ranks of this attempt, and by nobody else.

    `on_failure` is called on each rank that fails, with the failure that ends the run. Two threads: one speaks to the
    store and may hang there when the link is down, the other listens to signals and looks at the clock. The main thread
    speaks to neither the store nor the peers. `_changed` guards all fields that more than one thread writes.
    `stop_request`: the signal that asked the run to stop and its rank, such as "SIGTERM on rank 1"; empty before.
    """

    def __init__(
        self,
        store: SignedStore,
        *,
        rank: int,
        world_size: int,
        timeout_s: float,
        on_failure: Callable[[Failure], None] = lambda failure: None,
    ) -> None:
        self.rank, self.timeout_s = rank, timeout_s
        self.progress = Progress()  # of the main thread
        self.failure: Failure | None = None
        self.stop_request = ""
        self._on_failure = on_failure
        self._store, self._world_size = store, world_size
        self._heartbeats = Heartbeats(store, rank, world_size)
        self._signals = SignalListener()
        self._changed = threading.Condition()
        self._state = State.TRAINING
        self._begun = 0  # the last step that the loop has begun
        self._promise: int | None = None  # the loop begins no step beyond it until `_stop_step` is known
        self._stop_step: int | None = None  # the last step of all ranks
        self._own: Failure | None = None
        self._failed_s = 0.0  # when `failure` became known
        self._grace_s = GRACE_S  # from then on, until a main thread that is stuck is ended
        self._clock = AwakeClock()  # of the thread that does not speak to the store
        self._answered_s = 0.0  # the store's last answer
        self._asked_s: float | None = None  # when this rank heard that the run is asked to stop
        self._wake = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"failure detector {target.__name__}", daemon=True)
            for target in (self._speak, self._guard)
        ]

    @classmethod
    def alone(cls) -> "FailureDetector":
        """Return the detector of a rank without peers, which is never started: signals do what they do anyway."""
        return cls(SignedStore(HashStore(), "alone"), rank=0, world_size=1, timeout_s=float("inf"))

    def start(self) -> None:
        """Start listening, after all ranks have made theirs. From now on a signal asks all ranks to stop."""
        self._signals.start()
        self._clock = AwakeClock()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop listening, and let signals do again what they did before.

        They do nothing until the process ends if one came to any rank, or if one is about to come from a torchrun that
        sees a rank leave with another code than 0.
        """
        with self._changed:
            if self._state is State.CLOSED:
                return
            self._state = State.CLOSED
        for wake, thread in zip((self._wake.set, self._signals.wake), self._threads, strict=True):
            if thread.is_alive():
                wake()
                thread.join(timeout=1)
        self._signals.close(restore=self._signals.received is None and not self.stop_request and not self.failure)

    # For the main thread.

    def stops_before(self, step: int) -> bool:
        """Return True when training ends before `step`, on all ranks. Raises PeerFailedError when a rank has failed."""
        with self._changed:
            if self.failure or (self._promise is not None and step > self._promise):
                self.progress.wait()
                self._changed.wait_for(lambda: self.failure or self._stop_step is not None)
                self.progress.resume()
                if self.failure:
                    raise self.failure.as_error()
                if self._stop_step is not None and step > self._stop_step:
                    return True
            self._begun = step
            self.progress.begin(step)
            return False

    def fail(self, text: str, code: int, *, echo: bool) -> Failure:
        """Report why this rank fails, and with which code its peers shall exit. Return the failure that ends the run.

        `echo`: another rank's end is the likely cause, as after a failed collective. That rank's report is waited for.
        """
        own = Failure(self.rank, self._begun, code, text)
        if not self._threads[0].is_alive() and not self.failure:
            return own  # nobody listens
        with self._changed:
            if self._state is State.TRAINING and echo:
                self._state = State.SEARCHING
            self._grace_s = max(self._grace_s, GRACE_S + 2 * PATIENCE_S)
        if echo:
            self._wait_for_failure()
        with self._changed:
            self._own = own
            if self._state in (State.TRAINING, State.SEARCHING):
                self._state = State.REPORTING
        self._wait_for_failure()
        cut_off = echo and self._unanswered_s() >= SILENCE_S
        if cut_off:
            own = self._cut_off(f"{text}, and {self._no_answer()}")
        failure = self._learn(own)
        self._on_failure(failure)
        return failure

    def linger(self) -> None:
        """Return when torchrun has seen that a peer failed (it sends SIGTERM then), or after a while."""
        deadline = time.monotonic() + LINGER_S
        while self._signals.received is None and time.monotonic() < deadline:
            time.sleep(HURRY_S)

    def _wait_for_failure(self) -> None:
        """Return when a failure is known, or when it is not worth waiting: the store answers no more, or too late."""
        self._wake.set()
        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while not self.failure and time.monotonic() < deadline and self._unanswered_s() < SILENCE_S:
                self._changed.wait(HURRY_S)

    def _learn(self, failure: Failure) -> Failure:
        """Make this the failure that ends the run, unless one is known. Return the one that is known now."""
        with self._changed:
            if self.failure is None:
                self.failure, self._failed_s = failure, time.monotonic()
                if failure.unreported and failure.rank == self.rank != failure.noticed_by:
                    self._grace_s = 0.0  # this rank hangs: its end lets the others leave their collectives
                if self._state is not State.CLOSED:
                    self._state = State.FAILED
                self._changed.notify_all()
            return self.failure

    # The thread that speaks to the store.

    def _speak(self) -> None:
        try:
            while self._state is not State.CLOSED:
                self._exchange()
                self._answered_s = self._clock.seconds
                calm = self._state is State.TRAINING and not self.stop_request
                self._wake.wait(POLL_S if calm else HURRY_S)
                self._wake.clear()
        except RuntimeError as error:
            self._learn(self._cut_off(f"torchrun's store is gone: {error}"))

    def _exchange(self) -> None:
        """Hold one round with the store."""
        self._send_heartbeat()
        with self._changed:
            state, own = self._state, self._own
        if state is State.FAILED:
            return
        if failure := self._store.get("failed", self._parse_failure):
            self._learn(failure)
        elif state is State.REPORTING and own:
            self._report(own)
        else:
            self._heartbeats.look()
            self._follow_stop_request()
            self._search_lost_rank(searching=state is State.SEARCHING)

    def _send_heartbeat(self) -> None:
        with self._changed:
            promise = self._promise
        self._heartbeats.send(self.progress.report(), promise)

    def _follow_stop_request(self) -> None:
        if self._signals.received and not self.stop_request:
            asked = f"{signal.Signals(self._signals.received).name} on rank {self.rank}"
            self._store.first("asked", asked, parse_request)
        if not self.stop_request and (request := self._store.get("asked", parse_request)):
            with self._changed:
                self._promise = self._begun + 1  # the loop may be about to begin that one, but none beyond
            self._send_heartbeat()
            self.stop_request, self._asked_s = request, self._clock.seconds
        if self.stop_request and self._stop_step is None:
            if self.rank == 0 and (step := self._heartbeats.latest_promise()):
                self._store.set("stop", str(step))
            if (stop := self._store.get("stop", parse_step)) is not None:
                with self._changed:
                    self._stop_step = stop
                    self._changed.notify_all()

    def _search_lost_rank(self, *, searching: bool) -> None:
        if searching:
            self._store.set("searching", "yes")
        search = bool(self._store.get("searching", str))
        asked_for_s = None if self._asked_s is None else self._clock.seconds - self._asked_s
        if lost := self._heartbeats.lost(self.timeout_s, search=search, asked_for_s=asked_for_s):
            self._report(lost)

    def _report(self, failure: Failure) -> None:
        """Send a report. The first one in the store ends the run on all ranks."""
        self._learn(self._store.first("failed", failure.to_json(), self._parse_failure))

    def _parse_failure(self, text: str) -> Failure:
        return Failure.from_json(text, self._world_size)

    # The thread that does not speak to the store.

    def _guard(self) -> None:
        while self._state is not State.CLOSED:
            if self._signals.wait(POLL_S):
                self._wake.set()
            self._clock.tick()
            if self._unanswered_s() > self.timeout_s:
                self._learn(self._cut_off(self._no_answer()))
            if self.failure and time.monotonic() >= self._failed_s + self._grace_s:
                self._end(self.failure)

    def _cut_off(self, text: str) -> Failure:
        return Failure.lost(self.rank, self._begun, text, noticed_by=self.rank)

    def _unanswered_s(self) -> float:
        return self._clock.seconds - self._answered_s

    def _no_answer(self) -> str:
        return f"torchrun's store has not answered for {self._unanswered_s():.0f} s: is the link down?"

    def _end(self, failure: Failure) -> None:
        """End the process: the main thread is blocked in a collective that nobody completes, or in a long step.

        Only `os._exit` can: a thread cannot raise in a main thread that waits in C++.
        """
        if self._state is State.CLOSED:
            return
        with suppress(Exception):
            self._on_failure(failure)
        with suppress(Exception):
            if failure.unreported and failure.noticed_by == self.rank:
                _log.error("rank %d: %s", failure.rank, failure.text, extra={"file_only": True})
                print(f"rank {failure.rank}: {failure.text}", file=sys.stderr, flush=True)
        os._exit(failure.code)
