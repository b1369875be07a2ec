"""The cost of a training step beyond its arithmetic."""

import argparse
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch.utils.data import TensorDataset

from benchmarks import bare
from benchmarks.arguments import at_least
from benchmarks.outcome import Machine, Outcome, Row
from benchmarks.rounds import Timed, Timing, stopwatch, take_turns
from ddp_agent.config.options import Options
from ddp_agent.data.datasets.article import Article
from ddp_agent.data.task import Task
from ddp_agent.distributed.comm import Comm, LocalComm
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.topology import Topology
from ddp_agent.models.mlp import MLP
from ddp_agent.outputs.console import ConsoleProgress
from ddp_agent.outputs.observer import Observer
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.tracking import MetricsLog, TensorBoard
from ddp_agent.reducers import Dense
from ddp_agent.sync import AllReduce, Independent, LocalSGD, SyncStrategy
from ddp_agent.training.optimizers import SGD
from ddp_agent.training.schedules import Constant
from ddp_agent.training.session import Session, TrainSetup
from ddp_agent.training.trainer import Trainer

SUMMARY = "a training step of the trainer, and of a bare hand-written loop, with and without communication"
YARDSTICK = "bare hand-written loop"
TARGET = 1.15
BATCH = 32  # samples per rank
PERIOD = 8
LOG_EVERY = 20  # conf/config.yaml's
NEVER = 10**9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--repeats", type=at_least(1), default=60, help="rounds that count (60)")
    parser.add_argument("--steps", type=at_least(PERIOD), default=160, help="optimizer steps per round (160)")


def measure(arguments: argparse.Namespace, ranks: Runtime) -> Outcome:
    """Time the bare loop, the trainer, and the trainer that writes metrics, in each setting."""
    with tempfile.TemporaryDirectory(prefix="ddp_agent-bench-") as directory:
        rows = list(_rows(arguments.steps, arguments.repeats, ranks, Path(directory)))
    return Outcome(
        title=f"An optimizer step of the 10-32-2 MLP, {BATCH} samples per rank",
        how=f"medians of {arguments.repeats} alternating rounds of {arguments.steps} steps, time of the slowest rank; "
        f"ratio: to the bare loop, in the same round; without evaluations and checkpoints. Recording: rank 0 "
        f"writes metrics.jsonl and TensorBoard every {LOG_EVERY} steps",
        machine=Machine.here(ranks),
        rows=rows,
    )


@dataclass(frozen=True)
class Setting:
    """One way of synchronising, in the trainer and in a loop written by hand. `alone`: on rank 0 only."""

    name: str
    sync: Callable[[], SyncStrategy]
    by_hand: Callable[[bare.Data], bare.Loop]
    alone: bool = False


SETTINGS = (
    Setting("no communication, 1 rank", Independent, bare.independent, alone=True),
    Setting("gradients, every step", AllReduce, bare.gradients_averaged),
    Setting(
        f"parameters, every {PERIOD} steps",
        lambda: LocalSGD(period=PERIOD),
        lambda data: bare.parameters_averaged(data, PERIOD),
    ),
)


def _rows(steps: int, repeats: int, ranks: Runtime, directory: Path) -> Iterator[Row]:
    task = article()
    for number, setting in enumerate(SETTINGS):
        if setting.alone and ranks.rank != 0:
            continue  # this rank waits for rank 0 at the next setting's first collective
        topology = Topology(world=LocalComm(), ranks_per_node=1) if setting.alone else Topology.create()
        workload = Workload(task, topology, ranks.device)
        with RunDirectory(directory / str(number), rank=workload.world.rank) as run:
            recorders = workload.recorders(run)
            timings = take_turns(contenders(setting, workload, recorders, steps), repeats, workload.world)
            for recorder in recorders:
                recorder.close()
        for name, timing in timings.items():
            yield _row(setting, name, timing, steps)


def article() -> Task:
    """Return 1,000 samples of 10 features."""
    return Article(samples=1000, test_samples=1000, features=10, separation=2.3, loss="cross_entropy").load()


@dataclass(frozen=True)
class Workload:
    """The task, ranks and device that both loops train with."""

    task: Task
    topology: Topology
    device: torch.device

    @property
    def world(self) -> Comm:
        """All ranks of the workload."""
        return self.topology.world

    def share(self) -> bare.Data:
        """Return this rank's samples, for the loop written by hand."""
        assert isinstance(self.task.data.train, TensorDataset)
        rank, size = self.world.rank, self.world.size
        inputs, targets = (tensor[rank::size].to(self.device) for tensor in self.task.data.train.tensors)
        return bare.Data(inputs, targets, BATCH)

    def recorders(self, run: RunDirectory) -> list[Observer]:
        """Return the observers that write and print what a run of `train.py` does on this rank."""
        if run.rank != 0:
            return []
        console = ConsoleProgress(NEVER, console=Console(file=io.StringIO()))
        return [MetricsLog(run), TensorBoard(run, self.task.objective.metric_name), console]

    def session(self, sync: SyncStrategy, consensus_every: int | None = None) -> Session:
        """Return a session of the 10-32-2 MLP."""
        task = self.task
        model = MLP(input_shape=task.data.input_shape, outputs=task.objective.outputs, hidden=(32,)).to(self.device)
        optimizer = SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4).create(model.parameters())
        setup = TrainSetup(
            options=replace(options_for(BATCH * self.world.size), consensus_every=consensus_every),
            task=task,
            module=model,
            optimizer=optimizer,
            schedule=Constant(warmup_steps=0),
            sync=sync,
            reducer=Dense(),
            topology=self.topology,
            device=self.device,
        )
        return Session(setup)


def contenders(setting: Setting, workload: Workload, recorders: list[Observer], steps: int) -> dict[str, Timed]:
    """Return the three loops, the yardstick first."""
    by_hand = setting.by_hand(workload.share())
    silent, recording = (Trainer(workload.session(setting.sync()), observers) for observers in ([], recorders))
    return {
        YARDSTICK: lambda: stopwatch(lambda: by_hand(steps), workload.device),
        "trainer": lambda: fit(silent, steps),
        "trainer, recording": lambda: fit(recording, steps),
    }


def fit(trainer: Trainer, steps: int) -> float:
    """Train `steps` more steps. Return their seconds by the trainer's clock, which leaves out evaluation."""
    session = trainer.session
    before_s = session.costs()["train_s"]
    trainer.fit(until=session.step + steps)
    return session.costs()["train_s"] - before_s


def options_for(global_batch_size: int) -> Options:
    """Return options under which nothing but logging interrupts training."""
    return Options(
        seed=0,
        epochs=None,
        max_steps=NEVER,
        global_batch_size=global_batch_size,
        accumulation_steps=1,
        eval_every=NEVER,
        evaluate_own=False,
        checkpoint_every=None,
        keep_checkpoints=1,
        keep_best_checkpoint=False,
        async_checkpoints=False,
        consensus_every=None,
        consensus_per_layer=False,
        log_every=LOG_EVERY,
        resume=None,
        resume_other_ranks=False,
        device="auto",
        precision="fp32",
        compile=False,
        clip_norm=None,
        ema_decay=None,
        recalibrate_batches=1,
        target=None,
        run_name="bench",
        data_root=None,
        nproc_per_node=None,
        ranks_per_node=None,
        profile_steps=None,
        on_rank_loss="stop",
        timeout_s=600,
        trusted_packages=[],
    )


def _row(setting: Setting, name: str, timing: Timing, steps: int) -> Row:
    return {
        "synchronised": setting.name,
        "loop": name,
        "us_per_step": timing.median_s / steps * 1e6,
        "best_us": timing.best_s / steps * 1e6,
        **timing.ratios(),
        "target": TARGET if name == "trainer" else None,
    }
