"""One rank of a cold start, timed up to its first optimizer step; `starts` is who starts it.

Imports what its contender needs, when it needs it, and nothing else.
"""

import argparse
import json
import resource
import runpy
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from ddp_agent.distributed.process import die_with_parent, leave
from ddp_agent.distributed.torchrun_env import Place

if __name__ == "__main__":
    die_with_parent()

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.job import BATCH, HIDDEN, LR, Job

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def by_hand(job: Job, scratch: Path) -> None:
    from benchmarks.by_hand import Tutorial

    Tutorial(job)(job.steps)


def accelerate(job: Job, scratch: Path) -> None:
    from benchmarks.with_accelerate import Accelerated

    Accelerated(job)(job.steps)


def lightning(job: Job, scratch: Path) -> None:
    from benchmarks.with_lightning import Module, fit

    fit(Module(job), lambda: None, job.steps)


def trainer(job: Job, scratch: Path) -> None:
    from benchmarks.ours import new_trainer
    from ddp_agent.distributed import process_group as runtime
    from ddp_agent.sync import AllReduce

    with runtime.start(job.device.type, job="cold"):
        trainer = new_trainer(job, AllReduce())
        trainer.total_steps = job.steps
        trainer.fit()


def train_py(job: Job, scratch: Path) -> None:
    """A run with all that belongs to it: Hydra, a run directory, metrics, TensorBoard, the exported model."""
    sys.argv = [
        str(TRAIN),
        *("dataset=article", f"dataset.samples={job.samples}", f"dataset.test_samples={BATCH}"),
        *("dataset.loss=cross_entropy", "model=mlp", f"model.hidden=[{HIDDEN}]", f"optimizer.lr={LR}"),
        *(f"global_batch_size={BATCH * job.size}", f"max_steps={job.steps}", f"eval_every={job.steps}"),
        *(f"device={job.device.type}", f"hydra.run.dir='{scratch / 'run'}'"),
    ]
    from ddp_agent.cli import main

    command = runpy.run_path(str(TRAIN))  # as a module: the command itself ends its process, with nothing reported
    main(command["train"], check=command["check"], conf=TRAIN.parent / "conf")


LOOPS = {each.__name__: each for each in (by_hand, accelerate, lightning, trainer, train_py)}


def main(typed: list[str]) -> None:
    parser = argparse.ArgumentParser(description="One rank of a cold start; see python -m benchmarks peers.")
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--since", type=float, required=True, help="the monotonic clock when this process was started")
    parser.add_argument("--scratch", type=Path, required=True, help="results go there, one file a rank")
    arguments = parser.parse_args(typed)
    place = Place.read()
    assert place is not None
    job = Job(
        rank=place.rank,
        size=place.world_size,
        local_size=place.local_world_size,
        device=torch.device(arguments.device, place.local_rank) if arguments.device == "cuda" else torch.device("cpu"),
        steps=arguments.steps,
    )
    steps = Steps(arguments.since)
    with closing(steps):
        LOOPS[arguments.loop](job, arguments.scratch)
    assert steps.taken == job.steps, f"took {steps.taken} steps, not {job.steps}"
    found = {
        "first_step_s": steps.first_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_device_bytes": torch.cuda.max_memory_allocated() if job.device.type == "cuda" else None,
    }
    (arguments.scratch / f"rank-{job.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


class Steps:
    """Counts the steps of every optimizer, and stamps the first."""

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.taken = 0
        self.first_s: float | None = None
        self.close = register_optimizer_step_post_hook(self.count).remove

    def count(self, *_: Any) -> None:
        self.taken += 1
        if self.first_s is None:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.first_s = time.monotonic() - self.since_s


def peak_rss_bytes() -> int:
    """Of this program alone: what getrusage says begins with what its parent had when it forked."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(sys.argv[1:])
    leave(0)
