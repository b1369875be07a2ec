"""The part of blocked time in which a rank waited for later ranks, apart from the time in which bytes moved.

Every rank stamps a collective when it launches it. Bytes can move from the latest of the ranks' stamps on, once these
are put on one clock. A rank that stood still before that waited for a straggler.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.ledger import Wait

ROUNDS = 5  # of a barrier, 0.1 ms each: the quickest bounds the difference of two clocks


def settle_(comm: Comm) -> None:
    """Add the time waited for others since the last call to `comm.stats.straggler_s`. An uncounted collective."""
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
    """Return when the last rank that each collective needs had launched it, in seconds of rank 0's clock."""
    latest = launched.to(comm.device, copy=True)
    if all(wait.senders is None for wait in waits):  # equal on every rank: they made the same calls
        comm.all_reduce_(latest, "max")
        return latest.cpu()
    ranks = torch.stack(comm.all_gather(latest)).cpu()
    needed = [range(comm.size) if wait.senders is None else [comm.rank, *wait.senders] for wait in waits]
    return torch.stack([ranks[list(needed[column]), column].max() for column in range(len(waits))])


def clock_ahead_s(comm: Comm) -> float:
    """Return the seconds by which this process's `perf_counter` is ahead of rank 0's. A collective.

    Return 0 where both may be one clock, as on one machine. No rank leaves a barrier before all have entered it, so
    each barrier gives a lower and an upper bound. The middle of the tightest bounds is off by at most half a barrier.
    """
    stamps = torch.zeros(2, ROUNDS, dtype=torch.float64)
    for column in range(ROUNDS):
        stamps[0, column] = time.perf_counter()
        comm.barrier()
        stamps[1, column] = time.perf_counter()
    all_stamps = comm.all_gather(stamps.to(comm.device))
    (entered_0, left_0), (entered, left) = all_stamps[0].cpu(), stamps
    least, most = float((entered - left_0).max()), float((left - entered_0).min())
    return 0.0 if least <= 0 <= most else (least + most) / 2
