"""Timing on a machine that is not quiet: contenders take turns, and are compared within a turn."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from ddp_agent.comm import Comm

Timed = Callable[[], float]
"""Does its work once, and returns how many seconds that took."""


@dataclass(frozen=True)
class Timing:
    """`ratio` is the median, over rounds, of this contender's time by the yardstick's in the same round: whatever else
    the machine does for longer than a round slows both."""

    median_s: float
    best_s: float
    ratio: float


def take_turns(contenders: Mapping[str, Timed], rounds: int, comm: Comm) -> dict[str, Timing]:
    """The first contender is the yardstick. Every rank of `comm` calls this; the slowest rank's time counts.

    A round is every contender once, in one order or the other: who comes first finds other caches than who follows.
    One more round, not counted, warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name in list(contenders) if turn % 2 else reversed(contenders):
            comm.barrier()
            spent_s = contenders[name]()
            if turn > 0:
                seconds[name].append(spent_s)
    slowest = _slowest(torch.tensor(list(seconds.values()), dtype=torch.float64), comm)
    return {name: _timing(mine, slowest[0]) for name, mine in zip(contenders, slowest, strict=True)}


def stopwatch(work: Callable[[], None], device: torch.device) -> float:
    """Seconds until `work` is done, on the GPU too."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _slowest(seconds: torch.Tensor, comm: Comm) -> list[list[float]]:
    with comm.uncounted():
        gathered = comm.all_gather(seconds.to(comm.device))
    slowest: list[list[float]] = torch.stack(gathered).amax(0).tolist()
    return slowest


def _timing(seconds: list[float], yardstick: list[float]) -> Timing:
    ratios = [mine / other for mine, other in zip(seconds, yardstick, strict=True)]
    return Timing(median(seconds), min(seconds), median(ratios))
