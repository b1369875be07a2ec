"""What checkpoints cost in throughput."""

import argparse
import functools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import step
from benchmarks.arguments import at_least, existing_directory, multiple_of
from benchmarks.ours import train_for_ever
from benchmarks.outcome import Machine, Outcome
from benchmarks.overlap import HIDDEN, OUTPUTS, SHAPE
from benchmarks.paused import Paused
from benchmarks.rounds import Timing, stopwatch, take_turns
from ddp_agent.checkpoint.writer import Writer
from ddp_agent.data.classification import classification
from ddp_agent.data.task import Data, Task
from ddp_agent.distributed.error_propagation import tell
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.topology import Topology
from ddp_agent.models.cnn import CNN
from ddp_agent.reducers import Dense
from ddp_agent.rng import seed_everything
from ddp_agent.sync import AllReduce
from ddp_agent.training.optimizers import SGD
from ddp_agent.training.schedules import Constant
from ddp_agent.training.trainer import Trainer

SUMMARY = "checkpoints of the cnn every 50 steps, written before training goes on and beside it, against none"
EVERY = 50  # steps between checkpoints
KEEP = 2  # conf/config.yaml's
BATCH = 32  # images a rank
IMAGES = 20 * BATCH  # a rank's: random, since only time is of interest
TARGET = 1 / 0.97  # a throughput that is at most 3 % lower


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=at_least(1), default=40, help="rounds that count (40)")
    parser.add_argument("--steps", type=multiple_of(EVERY), default=EVERY, help="optimizer steps a round (50)")
    parser.add_argument("--directory", type=existing_directory, default=Path(),
                        help="where checkpoints are written, and removed again: the disk that matters (.)")  # fmt: skip


def measure(arguments: argparse.Namespace, ranks: Runtime) -> Outcome:
    """A round has every save that is begun in it, and 25 steps for the last one to be written. It is short, since on a
    machine whose speed drifts what is seconds apart compares better than what is half a minute apart."""
    steps = arguments.steps
    with _shared_directory(arguments.directory) as directory:
        timings = _timings(trainer(ranks), writers(directory), steps, arguments.repeats)
    none = timings["none"]
    return Outcome(
        title=f"A training step of a CNN on {SHAPE[1]} x {SHAPE[2]} images, {BATCH} a rank, a checkpoint every {EVERY}",
        how=f"medians of {arguments.repeats} alternating rounds of {steps} steps, wall-clock of the slowest rank; "
        f"ratio: to none, in the same round; a save reads back, hashes and fsyncs, and deletes all but {KEEP}",
        machine=Machine.here(ranks),
        rows=[
            {
                "checkpoints": name,
                "ms_a_step": timing.median_s / steps * 1e3,
                "ms_a_checkpoint": (timing.ratio - 1) * none.median_s * EVERY / steps * 1e3,
                "ratio": timing.ratio,
                "ratio_q1": timing.ratio_q1,
                "ratio_q3": timing.ratio_q3,
                "throughput_percent": 100 / timing.ratio,
                "target": TARGET if name == "beside training" else None,
            }
            for name, timing in timings.items()
        ],
    )


def writers(directory: Path) -> dict[str, Writer | None]:
    """The first is the yardstick."""
    world = world_comm()
    before, beside = (
        Writer(directory / name, world, fingerprint={}, keep=KEEP, beside_training=name == "beside")
        for name in ("before", "beside")
    )
    return {"none": None, "before training goes on": before, "beside training": beside}


def trainer(ranks: Runtime) -> Trainer:
    """It trains in all turns: of several in one process the last is some 15 % slower, whatever it does."""
    seed_everything(0)
    task = _random_images(ranks.world_size)
    model = CNN(input_shape=SHAPE, outputs=OUTPUTS, channels=(32, 64), hidden=HIDDEN).to(ranks.device)
    return Trainer(
        options=replace(step.options_for(BATCH * ranks.world_size), checkpoint_every=EVERY),
        total_steps=0,
        task=task,
        module=model,
        optimizer=SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4).create(model.parameters()),
        schedule=Constant(warmup_steps=0),
        sync=AllReduce(),
        reducer=Dense(),
        topology=Topology.create(),
        device=ranks.device,
        fingerprint={},
        run_dir=None,
    )


def _random_images(ranks: int) -> Task:
    train, test = ((torch.randn(count, *SHAPE), torch.randint(OUTPUTS, (count,))) for count in (IMAGES * ranks, BATCH))
    return classification(Data.resident(train, test), outputs=OUTPUTS, loss="cross_entropy")


def _timings(trainer: Trainer, writers: Mapping[str, Writer | None], steps: int, rounds: int) -> dict[str, Timing]:
    loop = Paused(functools.partial(train_for_ever, trainer), trainer.device)
    with closing(loop):
        loop(EVERY // 2)  # a round ends between two saves

        def turn(writer: Writer | None) -> float:
            trainer.writer = writer
            return stopwatch(functools.partial(loop, steps), trainer.device)

        found = take_turns(
            {name: functools.partial(turn, writer) for name, writer in writers.items()}, rounds, world_comm()
        )
    for writer in filter(None, writers.values()):
        writer.wait()
    return found


@contextmanager
def _shared_directory(parent: Path) -> Iterator[Path]:
    """The same on all ranks; removed when all are done with it."""
    world = world_comm()
    here = tempfile.TemporaryDirectory(prefix=".ddp_agent-bench-", dir=parent) if world.rank == 0 else nullcontext("")
    with here as made:
        yield Path(tell(world, made)).absolute()
        world.barrier()
