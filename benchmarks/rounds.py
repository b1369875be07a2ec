"""Timing on a machine that is not quiet: contenders take turns, and are compared within a turn."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_agent.distributed.comm import Comm

Timed = Callable[[], float]
"""Does its work once, and returns how many seconds that took."""


@dataclass(frozen=True)
class Timing:
    """`ratio` is this contender's time by the yardstick's in the same round, the median of all rounds: what else the
    machine does for longer than a round slows both. Half of the rounds lie between `ratio_q1` and `ratio_q3`."""

    median_s: float
    best_s: float
    ratio: float
    ratio_q1: float
    ratio_q3: float


def take_turns(contenders: Mapping[str, Timed], rounds: int, comm: Comm) -> dict[str, Timing]:
    """The first contender is the yardstick. Every rank of `comm` calls this; the slowest rank's time counts.

    A round is every contender once, in one order or the other: who comes first finds other caches than who follows.
    One more round, not counted, warms up.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names if turn % 2 else reversed(names):
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


def _slowest(seconds: Tensor, comm: Comm) -> Tensor:
    with comm.uncounted():
        gathered = comm.all_gather(seconds.to(comm.device))
    return torch.stack(gathered).amax(0).cpu()


def _timing(seconds: Tensor, yardstick: Tensor) -> Timing:
    q1, middle, q3 = (seconds / yardstick).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=seconds.dtype)).tolist()
    return Timing(seconds.quantile(0.5).item(), seconds.min().item(), ratio=middle, ratio_q1=q1, ratio_q3=q3)
