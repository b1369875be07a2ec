"""The account of a rank's communication: bytes, calls, and the time its compute stood still."""

import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ddp_agent.distributed.progress import Progress
from ddp_agent.distributed.regions import region

# Between two straggler reports a group keeps at most 65,536 records (10 MB). Later collectives are not attributed.
MAX_WAITS = 2**16


class CommError(RuntimeError):
    """A collective failed on this rank: a peer ended or hangs, or the link is down."""


class Timer:
    """The host's clock, whose stamps are seconds. A subclass may take stamps before their moment has come."""

    def now(self) -> Any:
        """Return a stamp of this moment."""
        return time.perf_counter()

    def between_s(self, began: Any, ended: Any) -> float:
        """Return the seconds between two stamps if they are known, else 0 and let `settle_s` return them."""
        return float(ended - began)

    def settle_s(self) -> float:
        """Return the seconds that `between_s` did not know, since the last call."""
        return 0.0

    def host_s(self, stamp: Any) -> float:
        """Return a stamp's moment by this process's `time.perf_counter`."""
        return float(stamp)


class CudaTimer(Timer):
    """The clock of the compute stream. Its stamps are events that pass when all work queued before them is done.

    The host does not wait for the GPU, except in `settle_s` and `host_s`: call them at logging intervals.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._zero: tuple[float, torch.cuda.Event] | None = None

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_s(self, began: torch.cuda.Event, ended: torch.cuda.Event) -> float:
        self._unread.append((began, ended))
        return 0.0

    def settle_s(self) -> float:
        seconds = 0.0
        for began, ended in self._unread:
            ended.synchronize()
            seconds += began.elapsed_time(ended) / 1e3
        self._unread.clear()
        return seconds

    def host_s(self, stamp: torch.cuda.Event) -> float:
        if self._zero is None:
            zero = self.now()
            zero.synchronize()
            self._zero = (time.perf_counter(), zero)
        stamp.synchronize()
        zero_s, zero = self._zero
        return zero_s + float(zero.elapsed_time(stamp)) / 1e3


@dataclass
class CommStats:
    """Traffic of one rank since the start.

    `payload_bytes`: handed to collectives by this rank. `wire_bytes`: what this rank sends under a bandwidth-optimal
    algorithm. `blocked_s`: how long its compute stood still for communication. `straggler_s`: the part of `blocked_s`
    in which it waited for ranks that came later, as of the last `stragglers.settle_`.
    """

    calls: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0
    blocked_s: float = 0.0
    straggler_s: float = 0.0


@dataclass(slots=True)
class Wait:
    """Stamps of one counted collective on this rank: its launch, and the span in which compute stood still for it.

    `senders`: the ranks of the group that this rank could wait for. None: all of them.
    """

    launched: Any
    began: Any = None
    ended: Any = None
    senders: Sequence[int] | None = None


@dataclass(eq=False)
class Ledger:
    """Counters, their switch and their clock. All groups of a world share one.

    `progress`: where collectives and waits are noted, for the failure detector.
    """

    timer: Timer = field(default_factory=Timer)
    stats: CommStats = field(default_factory=CommStats)
    counting: bool = True
    progress: Progress = field(default_factory=Progress, repr=False)
    _waits: dict[Hashable, list[Wait]] = field(default_factory=lambda: defaultdict(list), repr=False)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Stop counting inside: for measurement, evaluation and start-up, which are no part of a sync mode's cost."""
        before, self.counting = self.counting, False
        try:
            yield
        finally:
            self.counting = before

    def launch(
        self,
        group: Hashable | None,
        tensor: Tensor,
        wire_factor: float,
        messages: int = 1,
        senders: Sequence[int] | None = None,
    ) -> Wait | None:
        """Count a collective that is about to begin. Return its record, or None when nothing is counted.

        `group`: under which key `take_waits` finds the record. None: it is not kept.
        """
        self.progress.launch()
        if not self.counting:
            return None
        payload = tensor.numel() * tensor.element_size()
        stats = self.stats
        stats.calls += messages
        stats.payload_bytes += messages * payload
        stats.wire_bytes += messages * round(payload * wire_factor)
        wait = Wait(self.timer.now(), senders=senders)
        if group is not None and len(waits := self._waits[group]) < MAX_WAITS:
            waits.append(wait)
        return wait

    def blocked(self, wait: Wait | None = None) -> "Blocked":
        """Return a context: the time inside is added to `blocked_s`, and a RuntimeError becomes a CommError."""
        return Blocked(self, wait)

    def settle(self) -> CommStats:
        """Return the counters with the time of CUDA events added. Waits for the GPU: call it at logging intervals."""
        self.stats.blocked_s += self.timer.settle_s()
        return self.stats

    def take_waits(self, group: Hashable) -> list[Wait]:
        """Return the first `MAX_WAITS` counted collectives of `group` since the last call, in launch order."""
        return self._waits.pop(group, [])


class Blocked:
    """Time in which this rank's compute stands still for communication.

    A class, since a generator's context costs twice as much per collective.
    """

    __slots__ = ("_began", "_ledger", "_region", "_wait")

    def __init__(self, ledger: Ledger, wait: Wait | None) -> None:
        self._ledger, self._wait = ledger, wait
        self._region = region("communication")

    def __enter__(self) -> None:
        self._region.__enter__()
        self._ledger.progress.wait()
        self._began = self._ledger.timer.now() if self._ledger.counting else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._region.__exit__(kind, error, trace)
        self._ledger.progress.resume()
        if isinstance(error, RuntimeError):
            raise CommError(str(error)) from error
        ledger = self._ledger
        if error is not None or self._began is None or not ledger.counting:
            return
        ended = ledger.timer.now()
        if self._wait:
            self._wait.began, self._wait.ended = self._began, ended
        ledger.stats.blocked_s += ledger.timer.between_s(self._began, ended)
