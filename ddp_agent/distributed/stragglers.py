"""Waiting for others told apart from moving bytes.

Every rank stamps a collective when it launches it. Put on one clock, the latest of the ranks' stamps says from when on
bytes could move: whoever stood still before that waited for a straggler.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.ledger import Wait

ROUNDS = 5  # of a barrier, 0.1 ms each: the quickest tells how far two clocks are apart


def settle_(comm: Comm) -> None:
    """Adds to `comm.stats.straggler_s` what has been waited for others since the last call. An uncounted collective."""
    if comm.size == 1:
        return
    waits, host_s = comm.ledger.take_waits(comm), comm.ledger.timer.host_s
    with comm.uncounted():
        ahead_s = clock_ahead_s(comm)
        known = torch.tensor([len(waits)], device=comm.device)
        comm.all_reduce_(known, "min")
        waits = waits[: int(known)]
        if not waits:
            return
        launched = torch.tensor([host_s(wait.launched) - ahead_s for wait in waits], dtype=torch.float64)
        latest = _latest(launched, waits, comm) + ahead_s
    for wait, last_s in zip(waits, latest.tolist(), strict=True):
        if wait.began is not None and wait.ended is not None:
            began_s, ended_s = host_s(wait.began), host_s(wait.ended)
            comm.stats.straggler_s += min(max(last_s - began_s, 0.0), ended_s - began_s)


def _latest(launched: Tensor, waits: Sequence[Wait], comm: Comm) -> Tensor:
    """When the last rank that each collective needs had come, by rank 0's clock."""
    latest = launched.to(comm.device, copy=True)
    if all(wait.senders is None for wait in waits):  # the same on every rank: they made the same calls
        comm.all_reduce_(latest, "max")
        return latest.cpu()
    ranks = torch.stack(comm.all_gather(latest)).cpu()
    needed = [range(comm.size) if wait.senders is None else [comm.rank, *wait.senders] for wait in waits]
    return torch.stack([ranks[list(needed[column]), column].max() for column in range(len(waits))])


def clock_ahead_s(comm: Comm) -> float:
    """How far this process's `perf_counter` is ahead of rank 0's; 0 where they may be one, as on one machine.

    Nobody leaves a barrier before all have entered it, so each gives a bound from either side; the middle of the
    tightest is off by at most half the time of a barrier.
    """
    stamps = torch.zeros(2, ROUNDS, dtype=torch.float64)
    for column in range(ROUNDS):
        stamps[0, column] = time.perf_counter()
        comm.barrier()
        stamps[1, column] = time.perf_counter()
    everybody = comm.all_gather(stamps.to(comm.device))
    (entered_0, left_0), (entered, left) = everybody[0].cpu(), stamps
    least, most = float((entered - left_0).max()), float((left - entered_0).min())
    return 0.0 if least <= 0 <= most else (least + most) / 2
