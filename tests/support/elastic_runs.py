"""Runs of replicas: a coordinator in this process, and each replica what a torchrun of one rank would start."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fault_points import Fault
from forked_torchrun import Outcome, Torchrun
from safetensors.torch import load_file

from ddp_agent.distributed.process import REPLICA
from ddp_agent.elastic.coordinator import Coordinator

LOST_AFTER_S = 2.0
SMALL = ("max_steps=40", "global_batch_size=48", "model.hidden=[32]", "device=cpu", "log_every=8", "eval_every=20")
ELASTIC = ("on_rank_loss=continue", "timeout_s=20")


@contextlib.contextmanager
def coordinator(lost_after_s: float = LOST_AFTER_S, patience_s: float = 60.0) -> Iterator[Coordinator]:
    kept = Coordinator(lost_after_s=lost_after_s, patience_s=patience_s)
    try:
        yield kept
    finally:
        kept.close()


def environment(kept: Coordinator, number: int, count: int) -> dict[str, str]:
    return dict(zip(REPLICA, (str(number), str(count), kept.address), strict=True))


def signal_file(folder: Path) -> Path:
    """Return the file that held replicas of runs in `folder` wait for: see `fault_points`."""
    return folder / "signal"


def run(
    folder: Path,
    count: int,
    typed: Sequence[str],
    faults: Mapping[int, Sequence[Fault]] | None = None,
    *,
    restarts: Mapping[int, int] | None = None,
) -> list[Outcome]:
    """Return the outcome of each replica, by number. `faults` and `restarts` are by number, too."""
    faults, restarts = faults or {}, restarts or {}
    outcomes: dict[int, Outcome] = {}
    with coordinator() as kept, contextlib.ExitStack() as stack:
        threads = []
        for number in range(count):
            mine = [Fault(**{**vars(it), "rank": 0}) for it in faults.get(number, ())]  # rank 0 of its own torchrun
            torchrun = Torchrun(
                folder / f"replica-{number}",
                1,
                [*ELASTIC, *typed],
                mine,
                max_restarts=restarts.get(number, 0),
                environment=environment(kept, number, count) | {"FAULT_SIGNAL": str(signal_file(folder))},
            )
            stack.enter_context(torchrun)
            waiting = threading.Thread(target=lambda n=number, t=torchrun: outcomes.update({n: t.wait()}))
            waiting.start()
            threads.append(waiting)
        for waiting in threads:
            waiting.join()
    return [outcomes[number] for number in range(count)]


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return load_file(outcome.run_dir / "model.safetensors")


def summary(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outcome.run_dir / "summary.json").read_text())
    return found


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
