"""How long a cold start takes until the first step is done, and how much memory an epoch after it."""

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import cold
from benchmarks.job import Job
from benchmarks.outcome import Machine, Outcome
from benchmarks.rounds import take_turns
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.torchrun_env import without_torchrun

NAMES = {
    "train_py": "this tree: train.py, a whole run",
    "trainer": "this tree: the trainer alone",
    "by_hand": "hand-written loop: DDP, DataLoader",
    "accelerate": "accelerate",
    "lightning": "Lightning, barebones",
}
TIMEOUT_S = 300.0


def measure(work: Job, ranks: Runtime, repeats: int, peers: Sequence[str]) -> Outcome:
    """Rank 0 starts them, on its machine; other ranks wait."""
    there = ["train_py"] if cold.TRAIN.is_file() else []  # not where only the package is installed
    installed = [loop for loop in NAMES if loop in ("trainer", "by_hand", *there, *peers)]
    peaks: dict[str, list[tuple[int, int | None]]] = {loop: [] for loop in installed}

    def timed(loop: str) -> float:
        if ranks.rank != 0:
            return 0.0
        found = start(loop, work)
        peaks[loop] += [(each["peak_rss_bytes"], each["peak_device_bytes"]) for each in found]
        return max(each["first_step_s"] for each in found)

    timings = take_turns({loop: functools.partial(timed, loop) for loop in installed}, repeats, world_comm())
    return Outcome(
        title="A cold start",
        how=f"medians of {repeats} alternating rounds after one that fills the machine's file caches: from the start "
        f"of {work.local_size} processes until the slowest has taken its first optimizer step, ratio to the first "
        f"row; memory: the most that a rank had until the end of {work.steps} steps",
        machine=Machine.here(ranks),
        rows=[
            {
                "started": NAMES[loop],
                "first_step_s": timing.median_s,
                "ratio": timing.ratio,
                "ratio_q1": timing.ratio_q1,
                "ratio_q3": timing.ratio_q3,
                "peak_rss_bytes": max((rss for rss, _ in peaks[loop]), default=None),
                "peak_device_bytes": max((device for _, device in peaks[loop] if device is not None), default=None),
            }
            for loop, timing in timings.items()
        ],
    )


def start(loop: str, work: Job) -> list[dict[str, int]]:
    """What each rank of a fresh start reports."""
    with tempfile.TemporaryDirectory(prefix="ddp_agent-bench-") as directory, ExitStack() as until_ended:
        scratch, port = Path(directory), _free_port()
        ranks = [_rank(loop, work, rank, port, scratch) for rank in range(work.local_size)]
        for rank in ranks:
            until_ended.enter_context(rank)
            until_ended.callback(rank.kill)
        for number, rank in enumerate(ranks):
            if rank.wait(TIMEOUT_S) != 0:
                said = (scratch / f"rank-{number}.err").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"{NAMES[loop]} did not start:\n{said[-3000:]}")
        files = [scratch / f"rank-{number}.json" for number in range(work.local_size)]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _rank(loop: str, work: Job, rank: int, port: int, scratch: Path) -> "subprocess.Popen[bytes]":
    """With what torchrun would tell it: here nobody waits for torchrun to start itself."""
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(work.local_size),
        "LOCAL_WORLD_SIZE": str(work.local_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [
        *(sys.executable, "-m", "benchmarks.cold", loop, "--steps", str(work.steps)),
        *("--device", work.device.type, "--since", str(time.monotonic()), "--scratch", str(scratch)),
    ]
    with (scratch / f"rank-{rank}.err").open("wb") as said:
        return subprocess.Popen(
            command, env=without_torchrun(os.environ) | place, stdout=subprocess.DEVNULL, stderr=said
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
