"""One rank of a run, from a checked configuration to a finished run directory: the parts are put together here."""

import hashlib
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ddp_agent.checkpoint.writer import Writer
from ddp_agent.cli.shipped_values import shipped_values
from ddp_agent.data.shard_stats import ShardStats
from ddp_agent.data.shard_stats import summary as shard_summary
from ddp_agent.data.slicing.tasks import Owners
from ddp_agent.data.task import Task
from ddp_agent.distributed import ports, process_group
from ddp_agent.distributed.consistency import code_sha256, config_sha256, sha256_of
from ddp_agent.distributed.error_propagation import broadcast_text
from ddp_agent.distributed.failure_report import Failure
from ddp_agent.distributed.process import Replica
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.replica_group import ReplicaGroup
from ddp_agent.distributed.topology import Topology
from ddp_agent.elastic.group import Change, ElasticGroup, OverError
from ddp_agent.elastic.rounds import OvertakenError
from ddp_agent.errors import ConfigError, NoProgressError, PreemptedError
from ddp_agent.outputs import restarts
from ddp_agent.outputs.console import ConsoleProgress
from ddp_agent.outputs.files import disk_errors_explained
from ddp_agent.outputs.log import FILE_ONLY, setup_logging
from ddp_agent.outputs.observer import Expendable, Observer, Result, Start
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.tensorboard import History
from ddp_agent.outputs.tracking import MetricsLog, TensorBoard
from ddp_agent.rng import seed_everything
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.checkpoints import Checkpoints, fingerprint, resume
from ddp_agent.training.model import assign_tasks, create_model, partition
from ddp_agent.training.previews import Previews
from ddp_agent.training.results import export_model, hparams, summarise
from ddp_agent.training.session import Session, TrainSetup
from ddp_agent.training.settings import Settings, check_against_data, parse
from ddp_agent.training.trainer import Outcome, Trainer

if TYPE_CHECKING:
    from ddp_agent.cli.composition import LaunchContext
    from ddp_agent.training.profiling import Trace

log = logging.getLogger(__name__)


def run(context: "LaunchContext", directory: RunDirectory) -> None:
    """Train on this rank and leave everything behind in `directory`. Called on every rank."""
    settings = parse(context.cfg, choices=context.choices, world_size=context.world_size)
    task = settings.dataset.load()
    check_against_data(settings, task, context.world_size)
    model = create_model(settings, task)
    options = settings.options

    def on_failure(failure: Failure) -> None:
        directory.write_status("failed", failure.text, failure.rank, failure.step)

    with process_group.start(options.device, options.timeout_s, on_failure=on_failure) as ranks:
        try:
            with disk_errors_explained():
                setup_logging(directory.path, ranks.rank)
                Run(settings, task, model, directory, ranks).train()
        except OverError:
            reason = "the other replicas finished the run while this one was away"
            log.warning(reason)
            directory.write_status("finished", reason)


class Run:
    """One rank's run: its settings, its directory, its place among the ranks, and the session that trains.

    Raises ConfigError if the ranks differ or the model cannot be trained in this way. A collective.
    """

    def __init__(
        self, settings: Settings, task: Task, model: nn.Module, directory: RunDirectory, ranks: Runtime
    ) -> None:
        self.settings = settings = settings.for_steps(settings.options.total_steps(task.data.train_count))
        self.directory, self.ranks = directory, ranks
        self._last_reason = directory.reason() if ranks.rank == 0 else None
        if ranks.rank == 0:
            directory.write_status("running")
        self.owners: Owners = assign_tasks(settings.slicing, task, model, ranks.world_size)
        self.traces = self._traces()
        topology, self.replica_group = self._replicas()
        model.to(ranks.device)
        self.replica_group.require_identical(
            {"code": code_sha256(), "configuration": config_sha256(settings.cfg), "data": sha256_of(task.data.sha256)}
        )
        task, sync = partition(task, model, settings.sync, self.owners, ranks.rank)
        try:
            setup = TrainSetup(
                options=settings.options,
                task=task,
                module=model,
                optimizer=settings.optimizer.create(model.parameters()),
                schedule=settings.schedule,
                sync=sync,
                reducer=settings.reducer,
                topology=topology,
                device=ranks.device,
                slicing=settings.slicing,
                replica_group=self.replica_group,
                failure_detector=ranks.failure_detector,
                meters=tuple(self.traces),
            )
            self.session = Session(setup)
        except ValueError as error:  # a model that cannot be re-homed, ranks whose models differ
            raise ConfigError(str(error)) from error
        seed_everything(settings.options.seed, self.replica_group.slot)
        self.shard_stats = ShardStats.of(self.session.batches.order, task.data.labels)
        weights = internals(sync).flat.everything.detach().cpu().contiguous()
        self.init_sha256 = hashlib.sha256(weights.view(torch.uint8).numpy().tobytes()).hexdigest()

    def _replicas(self) -> tuple[Topology, ReplicaGroup]:
        """Return the ranks that torchrun started, or the replicas, where every replica has a torchrun of one rank."""
        options, directory, ranks = self.settings.options, self.directory, self.ranks
        replica = Replica.read()
        if options.on_rank_loss == "stop" or replica is None:
            topology = Topology.create(options.ranks_per_node)
            topology.world.ledger.progress = ranks.failure_detector.progress
            return topology, ReplicaGroup(topology.world)

        def report(change: Change) -> None:
            directory.write_status("running", str(change), step=change.step)

        def leave_when_asked() -> None:
            if request := ranks.failure_detector.stop_request:
                raise PreemptedError(f"{request}: stopped while it waited for the other replicas", 0)

        group = ElasticGroup(replica, options.timeout_s, on_change=report, interrupted=leave_when_asked)
        return Topology(world=group.world, ranks_per_node=1), group

    def train(self) -> dict[str, Any]:
        """Train, write everything that a run leaves behind, and return the summary."""
        self._describe()
        session, options = self.session, self.settings.options
        replicas = self.replica_group.slots if options.on_rank_loss == "continue" else None
        shared = fingerprint(self.settings, session.setup.task, replicas, shipped_values(self.settings.cfg))
        source = resume(session, shared, self.directory.path, self.ranks.attempt)
        if options.on_rank_loss == "stop":  # a replica that comes back has its progress from the others
            self._refuse_futile_attempt()
        joined = self.replica_group.begin(session.state)
        writer = Writer(
            self.directory.checkpoints,
            session.setup.topology.world,
            fingerprint=shared,
            keep=options.keep_checkpoints,
            keep_best=options.keep_best_checkpoint,
            beside_training=options.async_checkpoints,
        )
        with ExitStack() as until_closed:
            observers, start = self._observers(source)
            for observer in observers:
                until_closed.callback(observer.close)
            try:
                for observer in observers:
                    observer.begin(start)
                checkpoints = Checkpoints(session, writer, self.directory)
                outcome = self._fit(Trainer(session, observers, checkpoints), joined)
                checkpoints.require_directory()
                sample = self.replica_group.run_collective(
                    session.state,
                    lambda: export_model(session, self.settings, self.directory, is_writer=self.ranks.rank == 0),
                    "export",
                )
                self.replica_group.end()
                return self._finish(outcome, sample, observers)
            except BaseException as error:
                for observer in observers:
                    observer.failed(error)
                raise

    def _describe(self) -> None:
        settings, ranks = self.settings, self.ranks
        log.info(
            "%s on %s, sync %s, reducer %s: %d ranks on %s (%s)",
            *(settings.label(group) for group in ("model", "dataset", "sync", "reducer")),
            ranks.world_size,
            ranks.device.type,
            ranks.backend,
        )
        for remark in self.session.setup.task.data.remarks:
            log.warning(remark)
        for name, owners in self.owners.items():
            log.info("%s is trained by rank%s %s", name, "s" * (len(owners) > 1), ", ".join(map(str, owners)))
        for problem in settings.problems(ranks.world_size):
            if not problem.fatal:
                (log.info if problem.harmless else log.warning)(problem.text)
        if ranks.rank == 0 and (text := ports.describe({"torchrun": os.getppid(), "rank 0": os.getpid()})):
            log.info(text, extra=FILE_ONLY)

    def _refuse_futile_attempt(self) -> None:
        """Raise NoProgressError on all ranks if the last attempts began at this very step, too."""
        ranks, world = self.ranks, self.session.setup.topology.world
        futile = ""
        if ranks.rank == 0:
            futile = restarts.begin(self.directory, ranks.attempt, self.session.step, self._last_reason)
        with world.uncounted():
            if futile := broadcast_text(world, futile):
                raise NoProgressError(futile)

    def _traces(self) -> "list[Trace]":
        options, ranks = self.settings.options, self.ranks
        if options.profile_steps is None:
            return []
        from ddp_agent.training.profiling import Trace  # takes half a second to import

        path = self.directory.path / f"trace.rank{ranks.rank}.json.gz"
        return [Trace(options.profile_steps, path, ranks.device)]

    def _observers(self, source: Path | None) -> tuple[list[Observer], Start]:
        """Return what looks at this rank, and what it is shown first. `source`: the run that this one continues."""
        session, setup, directory = self.session, self.session.setup, self.directory
        example = None
        observers: list[Observer] = [Expendable(trace, "trace") for trace in self.traces]
        if self.ranks.rank == 0:
            history = History.read(source, session.step) if source else None
            metrics = MetricsLog(directory, history)
            board = TensorBoard(directory, setup.task.objective.metric_name, history=history)
            previews = Previews(setup.task, board, setup.device, last_step=setup.total_steps, stats=self.shard_stats)
            console = Expendable(ConsoleProgress(setup.total_steps, first_step=session.step), "console")
            observers = [metrics, board, previews, console, *observers]
            example = previews.example
        start = Start(model=setup.module, config=self.settings.cfg, step=session.step, inputs=example)
        return observers, start

    def _fit(self, trainer: Trainer, joined: bool) -> Outcome:
        """Train. If the others went on without this replica, it takes over their state and continues from there."""
        while True:
            try:
                return trainer.fit(joined=joined)
            except OvertakenError:
                log.warning("the others went on without this replica; it joins them again")
                joined = self.replica_group.begin(self.session.state)

    def _finish(self, outcome: Outcome, sample: str | None, observers: list[Observer]) -> dict[str, Any]:
        """Write and return the summary. A collective."""
        session, settings, directory = self.session, self.settings, self.directory
        summary = summarise(
            session,
            settings,
            outcome,
            task_owners={name: list(owners) for name, owners in self.owners.items()} or None,
            nodes=self.ranks.world_size // self.ranks.local_world_size,
            init_sha256=self.init_sha256,
            replicas=self.replica_group.facts(),
            **shard_summary(self.shard_stats),
        ).to_dict()
        if self.ranks.rank == 0:
            with self.ranks.failure_detector.progress.writing(directory.path):
                directory.write_summary(summary)
                values = hparams(settings, self.replica_group.slots)
                result = Result(summary=summary, hparams=values, run_dir=directory.path, sample=sample)
                for observer in observers:
                    observer.finished(result)
                directory.write_finished(session.step)
        return summary
