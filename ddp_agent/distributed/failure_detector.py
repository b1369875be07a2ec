"""Threads beside training, by which ranks tell each other what no collective can: stop, I failed, I am alive.

A flag reduced in every step would do it too, and take from local modes what they are for: steps without the others.
Here every rank shows a sign of life in the store twice a second (some 0.2 ms each), and the loop compares two numbers
a step.

Stopping. Ranks must leave after the same step, though they may be a period apart and blocked in collectives that wait
for one another. So each promises, without waiting for its loop, to begin no step beyond the next one; the latest step
that was promised is where all stop. Nobody is further by then, and who waits in a collective gets what it waits for.
The signal handler does nothing: the interpreter writes the signal's number into a pipe, also while the main thread is
blocked inside a collective, and a thread reads it.

Failing. A rank tells why before it closes its connections, so what the store heard first is the cause, and all that
peers see after it an echo. A rank that dies or hangs tells nothing, but its signs of life end.
"""

import json
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from ddp_agent.distributed.c10d import Store
from ddp_agent.distributed.heartbeat import Sign, Signs
from ddp_agent.errors import PeerFailedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # the last two: schedulers'
POLL_S = 0.5
HURRY_S = 0.1  # while something is going on
SILENCE_S = 3.0  # how long a rank that is looked for may show no sign of life; else it is `timeout_s`
PATIENCE_S = 4.5  # for the cause of a collective's failure to be found
GRACE_S = 3.0  # for the loop to reach a step's end after a peer failed; it may be blocked and never get there
LINGER_S = 2.0  # so that torchrun sees the rank that failed first before its echoes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """`code` is what its peers exit with; `mute`: that rank cannot tell the user itself."""

    rank: int
    step: int
    code: int
    text: str
    mute: bool = False


def _nobody_to_tell(failure: Failure) -> None: ...


class NullWatch:
    """For ranks without a store: signals do what they do anyway."""

    asked = ""
    on_failure: Callable[[Failure], None] = staticmethod(_nobody_to_tell)

    def stops_before(self, step: int) -> bool:
        return False

    def fail(self, text: str, code: int, *, echo: bool) -> Failure | None:
        return None

    def linger(self) -> None: ...

    def close(self) -> None: ...


class Watch:
    """One rank's. `store` is shared by all ranks of this attempt and used by nothing else; every rank makes a watch.

    Two threads: one speaks to the store and may hang there when the link is down, one listens to signals and looks at
    the clock. The main thread speaks to neither the store nor the peers.
    """

    def __init__(self, store: Store, *, rank: int, world_size: int, timeout_s: float) -> None:
        self.rank, self.timeout_s = rank, timeout_s
        self.asked = ""  # by which signal, on which rank
        self.failure: Failure | None = None
        self.on_failure: Callable[[Failure], None] = _nobody_to_tell  # told on each rank that fails
        self._store = store
        self._signs = Signs(store, rank, world_size)
        self._begun = 0
        self._limit: float = float("inf")  # the loop waits before steps beyond it
        self._promise: int | None = None
        self._stop_step: int | None = None
        self._settled = threading.Event()  # where to stop is known, or there is a failure
        self._signal: int | None = None
        self._in_doubt = False
        self._own: Failure | None = None
        self._leaving = False
        self._closed = False
        self._answered_s = time.monotonic()  # when the store last did
        self._failed_s = 0.0
        self._handlers: dict[int, Any] = {}
        self._wake = threading.Event()
        self._ears, self._bell = os.pipe()
        os.set_blocking(self._ears, False)
        os.set_blocking(self._bell, False)
        self._threads = [
            threading.Thread(target=target, name=f"watch {target.__name__}", daemon=True)
            for target in (self._confer, self._guard)
        ]

    def start(self) -> None:
        """When all ranks have made theirs. From now on signals ask all ranks to stop; those ignored so far stay so."""
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, _only_into_the_pipe) for number in heard}
            signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Signals do again what they did before, unless one came to any rank or is about to, from a torchrun that sees
        a rank leave with another code than 0: then they do nothing until the process ends."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        with suppress(BlockingIOError):
            os.write(self._bell, b"\0")
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=1)
        if self._handlers:
            signal.set_wakeup_fd(-1)
            leaving = self._signal is not None or self.asked or self.failure
            for number, handler in () if leaving else self._handlers.items():
                signal.signal(number, handler)

    # For the main thread.

    def stops_before(self, step: int) -> bool:
        """Whether training ends before `step`, on all ranks. Raises PeerFailedError when a rank has failed."""
        if step > self._limit:
            self._settled.wait()
            if self.failure:
                raise PeerFailedError(self.failure.rank, self.failure.text, self.failure.code, self.failure.step)
            if self._stop_step is not None and step > self._stop_step:
                return True
        self._begun = step
        return False

    def fail(self, text: str, code: int, *, echo: bool) -> Failure:
        """Tells why this rank fails, and with which code its peers shall exit; returns what was told first of all.

        `echo`: a collective failed, so that some other rank's end is the likely cause; it is waited for.
        """
        self._leaving = True
        if echo:
            self._in_doubt = True
            self._wait_while_there_is_hope()
        self._own = Failure(self.rank, self._begun, code, text)
        self._wait_while_there_is_hope()
        cut_off = echo and self._unanswered_s() >= SILENCE_S
        self._learn(self._lost(f"{text}, and {self._unanswering()}") if cut_off else self._own)
        assert self.failure is not None
        self.on_failure(self.failure)
        return self.failure

    def _wait_while_there_is_hope(self) -> None:
        self._wake.set()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._unanswered_s() < SILENCE_S:
            if self._settled.wait(HURRY_S) and self.failure:
                return

    def linger(self) -> None:
        """Returns when torchrun has seen that a peer failed (it sends SIGTERM then), or after a while."""
        deadline = time.monotonic() + LINGER_S
        while self._signal is None and time.monotonic() < deadline:
            time.sleep(HURRY_S)

    # The thread that speaks to the store.

    def _confer(self) -> None:
        try:
            while not self._closed:
                self._look_around()
                self._answered_s = time.monotonic()
                self._wake.wait(HURRY_S if self.failure or self.asked or self._leaving else POLL_S)
                self._wake.clear()
        except RuntimeError as error:
            self._learn(self._lost(f"torchrun's store is gone: {error}"))

    def _look_around(self) -> None:
        self._show()
        if self.failure:
            return
        if self._store.check(["failed"]):
            self._learn(_parsed(self._store.get("failed")))
        elif self._own:
            self._tell(self._own)
        else:
            self._hear_who_asks()
            self._look_for_the_lost()
            if self.asked and self._stop_step is None:
                self._agree()

    def _show(self) -> None:
        self._signs.show(Sign(self._begun, self._promise))

    def _hear_who_asks(self) -> None:
        if self._signal and not self.asked:
            self._store.compare_set("asked", "", f"{signal.Signals(self._signal).name} on rank {self.rank}")
        if not self.asked and self._store.check(["asked"]):
            self._limit = self._promise = self._begun + 1  # the loop may be about to begin that one, but none beyond
            self._show()
            self.asked = self._store.get("asked").decode()

    def _agree(self) -> None:
        if self.rank == 0:
            promises = [sign.promise for sign in self._signs.of_all()]
            made = [promise for promise in promises if promise is not None]
            if len(made) == len(promises):
                self._store.set("stop", str(max(made)))
        if self._store.check(["stop"]):
            self._limit = self._stop_step = int(self._store.get("stop"))
            self._settled.set()

    def _look_for_the_lost(self) -> None:
        if self._in_doubt:
            self._store.set("doubt", "")
        in_doubt = bool(self.asked) or self._store.check(["doubt"])
        lost = self._signs.silent(SILENCE_S if in_doubt else self.timeout_s)
        if not lost and in_doubt:
            lost = self._signs.dead()
        if lost:
            rank, step, what = lost
            self._tell(Failure(rank, step, PeerFailedError.exit_code, what, mute=True))

    def _tell(self, failure: Failure) -> None:
        """The first that is told is everybody's."""
        self._learn(_parsed(self._store.compare_set("failed", "", json.dumps(asdict(failure)))))

    def _learn(self, failure: Failure) -> None:
        if not self.failure:
            self._failed_s = time.monotonic()
            self.failure, self._limit = failure, -1
            self._settled.set()

    # The thread that does not.

    def _guard(self) -> None:
        while not self._closed:
            select.select([self._ears], [], [], POLL_S)
            with suppress(BlockingIOError):
                for number in os.read(self._ears, 4096):
                    if number in SIGNALS:
                        self._signal = self._signal or number
                        self._wake.set()
            if self._unanswered_s() > self.timeout_s:
                self._learn(self._lost(self._unanswering()))
            if self.failure:
                self._end_if_stuck(self.failure)

    def _unanswered_s(self) -> float:
        return time.monotonic() - self._answered_s

    def _unanswering(self) -> str:
        return f"torchrun's store has not answered for {self._unanswered_s():.0f} s: is the link down?"

    def _lost(self, text: str) -> Failure:
        return Failure(self.rank, self._begun, PeerFailedError.exit_code, text, mute=True)

    def _end_if_stuck(self, failure: Failure) -> None:
        """The main thread may be blocked: in a collective that nobody will complete, or in a long step."""
        grace_s = GRACE_S + (2 * PATIENCE_S if self._leaving else 0)
        if self._closed or time.monotonic() < self._failed_s + grace_s:
            return
        with suppress(Exception):
            if failure.mute:
                _log.error("rank %d: %s", failure.rank, failure.text)
            self.on_failure(failure)
        os._exit(failure.code)


def _only_into_the_pipe(number: int, frame: FrameType | None) -> None:
    """A signal needs a handler to be written there."""


def _parsed(told: bytes) -> Failure:
    return Failure(**json.loads(told))


def _forget_signals() -> None:
    """A forked child would write its signals into its parent's pipe, and could not be terminated."""
    if signal.getsignal(signal.SIGTERM) is _only_into_the_pipe:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_signals)
