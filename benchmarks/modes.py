"""What each way of synchronising adds to a step, with the ranks that there are."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import overlap
from benchmarks.outcome import Machine, Outcome
from benchmarks.rounds import stopwatch, take_turns
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.torchrun_env import without_torchrun
from ddp_agent.sync import (
    EASGD,
    AllReduce,
    Compressed,
    DiLoCo,
    Gossip,
    Hierarchical,
    Independent,
    LocalSGD,
    ParameterUpdate,
    PostLocalSGD,
    SlowMo,
    StreamingDiLoCo,
    SyncStrategy,
)

PERIOD = 16
BATCH = 64
MODES: dict[str, Callable[[], SyncStrategy]] = {
    "independent": Independent,
    "allreduce": AllReduce,
    "compressed": Compressed,
    "local_sgd": functools.partial(LocalSGD, period=PERIOD),
    "post_local_sgd": functools.partial(PostLocalSGD, period=PERIOD, switch_step=0),
    "hierarchical": functools.partial(Hierarchical, node_period=1, global_period=PERIOD),
    "parameter_update": functools.partial(ParameterUpdate, period=PERIOD, combine="mean"),
    "diloco": functools.partial(DiLoCo, period=PERIOD),
    "slowmo": functools.partial(SlowMo, period=PERIOD),
    "streaming_diloco": functools.partial(StreamingDiLoCo, period=PERIOD, fragments=2, delay=1),
    "gossip": functools.partial(Gossip, period=PERIOD),
    "easgd": functools.partial(EASGD, period=PERIOD),
}


def measure(ranks: Runtime, repeats: int) -> Iterator[Outcome]:
    """With these ranks, and where one has a GPU to itself, with two that share it. Every rank runs through it."""
    yield here(ranks, repeats)
    if ranks.device.type == "cuda" and ranks.world_size == 1:
        yield _two_on_this_gpu(repeats)


def here(ranks: Runtime, repeats: int, steps: int = 4 * PERIOD) -> Outcome:
    """`steps`: whole periods, so that no round pays for what another one began."""

    def timed(run: Callable[[int], None]) -> float:
        return stopwatch(lambda: run(steps), ranks.device)

    turns = {name: functools.partial(timed, overlap.loop(create(), BATCH, ranks)) for name, create in MODES.items()}
    timings = take_turns(turns, repeats, world_comm())
    return Outcome(
        title=f"A training step of a CNN on {overlap.SHAPE[1]} x {overlap.SHAPE[2]} images, {BATCH} a rank",
        how=f"medians of {repeats} alternating rounds of {steps} steps, H = {PERIOD}, time of the slowest rank; ratio: "
        "to independent, in the same round",
        machine=Machine.here(ranks),
        rows=[
            {
                "ranks": f"{ranks.world_size} on {ranks.backend}",
                "sync": name,
                "ms_a_step": timing.median_s / steps * 1e3,
                "us_more": (timing.median_s - timings["independent"].median_s) / steps * 1e6,
                "ratio": timing.ratio,
                "ratio_q1": timing.ratio_q1,
                "ratio_q3": timing.ratio_q3,
            }
            for name, timing in timings.items()
        ],
    )


def _two_on_this_gpu(repeats: int) -> Outcome:
    """By a torchrun of their own: a process group keeps its backend."""
    with tempfile.TemporaryDirectory(prefix="ddp_agent-bench-") as directory:
        file = Path(directory) / "modes.json"
        command = [
            *(sys.executable, "-m", "benchmarks", "peers", "--only", "modes", "--ranks", "2"),
            *("--repeats", str(repeats), "--json", str(file)),
        ]
        subprocess.run(command, env=without_torchrun(os.environ), stdout=subprocess.DEVNULL, check=True)
        found = json.loads(file.read_text(encoding="utf-8"))
    return Outcome(**found | {"machine": Machine(**found["machine"])})
