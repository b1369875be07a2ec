"""Timing on a machine that is not quiet: contenders take turns, and are compared within a round."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ddp_agent.distributed.comm import Comm

Timed = Callable[[], float]
"""Work that is done once per call, which returns the seconds that it took."""


@dataclass(frozen=True)
class Timing:
    """Times of one contender over all rounds.

    `ratio` is the median of its time divided by the yardstick's time of the same round: a disturbance longer than a
    round slows both. Half of the rounds lie between `ratio_q1` and `ratio_q3`.
    """

    median_s: float
    best_s: float
    ratio: float
    ratio_q1: float
    ratio_q3: float

    def ratios(self) -> dict[str, float]:
        """Return the three ratios as columns of a table."""
        return {key: value for key, value in asdict(self).items() if key.startswith("ratio")}


def take_turns(contenders: Mapping[str, Timed], rounds: int, comm: Comm) -> dict[str, Timing]:
    """Time every contender once per round. The first contender is the yardstick.

    A collective: every rank of `comm` calls it, and the slowest rank's time counts. The order of contenders is reversed
    from round to round, since the caches that a contender finds depend on the contender before it. One more round at
    the start warms up and is not counted.
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
    return {name: _timing(own, slowest[0]) for name, own in zip(contenders, slowest, strict=True)}


def stopwatch(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds until `work` is done, on the GPU too."""
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
