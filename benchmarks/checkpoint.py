"""The throughput that checkpoints cost."""

import argparse
import functools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import step
from benchmarks.arguments import at_least, existing_directory, multiple_of
from benchmarks.outcome import Machine, Outcome
from benchmarks.overlap import HIDDEN, OUTPUTS, SHAPE
from benchmarks.rounds import Timing, stopwatch, take_turns
from ddp_agent.checkpoint.writer import Writer
from ddp_agent.data.classification import classification
from ddp_agent.data.task import Data, Task
from ddp_agent.distributed.error_propagation import broadcast_text
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.topology import Topology
from ddp_agent.models.cnn import CNN
from ddp_agent.outputs.observer import Observer
from ddp_agent.reducers import Dense
from ddp_agent.rng import seed_everything
from ddp_agent.sync import AllReduce
from ddp_agent.training.checkpoints import Checkpoints
from ddp_agent.training.optimizers import SGD
from ddp_agent.training.schedules import Constant
from ddp_agent.training.session import Session, TrainSetup
from ddp_agent.training.trainer import Trainer

SUMMARY = "checkpoints of the cnn every 50 steps, written before training continues and beside it, against none"
EVERY = 50  # steps between checkpoints
KEEP = 2  # conf/config.yaml's
BATCH = 32  # images per rank and step
IMAGES = 20 * BATCH  # per rank; random, since only time matters
TARGET = 1 / 0.97  # a throughput that is at most 3 % lower


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--repeats", type=at_least(1), default=40, help="rounds that count (40)")
    parser.add_argument("--steps", type=multiple_of(EVERY), default=EVERY, help="optimizer steps per round (50)")
    where = "existing folder on the disk to measure; the checkpoints are removed at the end (.)"
    parser.add_argument("--directory", type=existing_directory, default=Path(), help=where)


def measure(arguments: argparse.Namespace, ranks: Runtime) -> Outcome:
    """Time training without checkpoints and with two kinds of them.

    A round ends 25 steps after its last save, which is written by then. Rounds are short: where a machine's speed
    drifts, times that are seconds apart compare better than times half a minute apart.
    """
    steps = arguments.steps
    with _shared_directory(arguments.directory) as directory:
        timings = _timings(new_session(ranks), writers(directory), steps, arguments.repeats)
    none = timings["none"]
    return Outcome(
        title=f"A training step of a CNN on {SHAPE[1]} x {SHAPE[2]} images, {BATCH} per rank, saved every {EVERY}",
        how=f"medians of {arguments.repeats} alternating rounds of {steps} steps, wall-clock of the slowest rank; "
        f"ratio: to none, in the same round; a save reads back, hashes and fsyncs, and deletes all but {KEEP}",
        machine=Machine.here(ranks),
        rows=[
            {
                "checkpoints": name,
                "ms_per_step": timing.median_s / steps * 1e3,
                "ms_per_checkpoint": (timing.ratio - 1) * none.median_s * EVERY / steps * 1e3,
                **timing.ratios(),
                "throughput_percent": 100 / timing.ratio,
                "target": TARGET if name == "beside training" else None,
            }
            for name, timing in timings.items()
        ],
    )


def writers(directory: Path) -> dict[str, Writer | None]:
    """Return the writers by name, the yardstick first."""
    world = world_comm()
    before, beside = (
        Writer(directory / name, world, fingerprint={}, keep=KEEP, beside_training=name == "beside")
        for name in ("before", "beside")
    )
    return {"none": None, "before training continues": before, "beside training": beside}


def new_session(ranks: Runtime) -> Session:
    """Return the session that all turns share: of several in one process the last is some 15 % slower."""
    seed_everything(0)
    task = _random_images(ranks.world_size)
    model = CNN(input_shape=SHAPE, outputs=OUTPUTS, channels=(32, 64), hidden=HIDDEN).to(ranks.device)
    setup = TrainSetup(
        options=replace(step.options_for(BATCH * ranks.world_size), checkpoint_every=EVERY),
        task=task,
        module=model,
        optimizer=SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4).create(model.parameters()),
        schedule=Constant(warmup_steps=0),
        sync=AllReduce(),
        reducer=Dense(),
        topology=Topology.create(),
        device=ranks.device,
    )
    return Session(setup)


def _random_images(ranks: int) -> Task:
    train, test = ((torch.randn(count, *SHAPE), torch.randint(OUTPUTS, (count,))) for count in (IMAGES * ranks, BATCH))
    return classification(Data.resident(train, test), outputs=OUTPUTS, loss="cross_entropy")


class RoundEndError(Exception):
    """End of a round, raised inside of training."""


class RoundEnd(Observer):
    """Observer that ends training after step `last`, without the evaluation and the checkpoint of a run's end."""

    def __init__(self) -> None:
        self.last = 0

    def stepped(self, step: int) -> None:
        """Raise RoundEndError after the last step."""
        if step == self.last:
            raise RoundEndError


def _timings(session: Session, writers: Mapping[str, Writer | None], steps: int, rounds: int) -> dict[str, Timing]:
    end = RoundEnd()
    trainers = {name: Trainer(session, [end], Checkpoints(session, writer)) for name, writer in writers.items()}

    def train(trainer: Trainer, steps: int) -> None:
        end.last = session.step + steps
        with suppress(RoundEndError):
            trainer.fit()

    def turn(trainer: Trainer) -> float:
        return stopwatch(lambda: train(trainer, steps), session.setup.device)

    train(trainers["none"], EVERY // 2)  # from here on a round ends between two saves
    timings = take_turns(
        {name: functools.partial(turn, trainer) for name, trainer in trainers.items()}, rounds, world_comm()
    )
    for writer in filter(None, writers.values()):
        writer.wait()
    return timings


@contextmanager
def _shared_directory(parent: Path) -> Iterator[Path]:
    """Make one directory for all ranks, and remove it when every rank has left the context."""
    world = world_comm()
    here = tempfile.TemporaryDirectory(prefix=".ddp_agent-bench-", dir=parent) if world.rank == 0 else nullcontext("")
    with here as made:
        yield Path(broadcast_text(world, made)).absolute()
        world.barrier()
