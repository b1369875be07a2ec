"""One rank of a run, from a checked configuration to a finished run directory: where the parts meet."""

import functools
import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ddp_agent.checkpoint import export
from ddp_agent.config.fields import REQUIRED, parameters
from ddp_agent.config.redaction import redacted
from ddp_agent.config.registry import build, is_own, locate
from ddp_agent.data.shard_stats import Census
from ddp_agent.data.shard_stats import summary as shard_summary
from ddp_agent.data.slicing.tasks import Owners
from ddp_agent.data.task import Task
from ddp_agent.distributed import ports as sockets
from ddp_agent.distributed import process_group as runtime
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.consistency import code_sha256, config_sha256, sha256_of
from ddp_agent.distributed.error_propagation import tell
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.replica_group import FixedGroup, ReplicaGroup
from ddp_agent.distributed.topology import Topology
from ddp_agent.distributed.torchrun_env import Replica
from ddp_agent.elastic.group import ElasticGroup, OverError
from ddp_agent.elastic.quorum import Change
from ddp_agent.elastic.rounds import OvertakenError
from ddp_agent.errors import CheckpointError, ConfigError, NoProgressError, PreemptedError
from ddp_agent.models.common.meta_build import skeleton
from ddp_agent.models.common.multi_task import with_heads
from ddp_agent.outputs import environment
from ddp_agent.outputs import restarts as attempts
from ddp_agent.outputs.confusion import values as class_accuracies
from ddp_agent.outputs.console import ConsoleProgress
from ddp_agent.outputs.files import write_atomically
from ddp_agent.outputs.images.shards import shards
from ddp_agent.outputs.log import setup_logging
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.tensorboard import History
from ddp_agent.outputs.tracking import Tracker
from ddp_agent.rng import seed_everything
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training import link_bytes as link
from ddp_agent.training.evaluate import Scores, inference
from ddp_agent.training.previews import Exhibition
from ddp_agent.training.settings import RUNTIME, Settings, check_against_data, parse
from ddp_agent.training.task_assignment import deal, partition
from ddp_agent.training.trainer import Trainer

log = logging.getLogger(__name__)

# What a resumed run must have in common with the checkpoint.
FINGERPRINTED = ("model", "slicing", "sync", "cadence", "reducer", "optimizer", "schedule")
# Of the diagnostics, what was measured last is worth a place in the summary.
DIAGNOSTICS = (
    "consensus_relative",
    "change_cosine",
    "gradient_cosine",
    "pseudo_gradient_norm",
    "critical_batch_samples",
)


class Context(Protocol):
    """What a run needs to know of how it was started."""

    @property
    def cfg(self) -> dict[str, Any]: ...
    @property
    def choices(self) -> dict[str, str]: ...
    @property
    def world_size(self) -> int: ...
    @property
    def attempt(self) -> int: ...


def run(context: Context, directory: RunDirectory) -> None:
    settings = parse(context.cfg, choices=context.choices, world_size=context.world_size)
    task = settings.dataset.load()
    check_against_data(settings, task, context.world_size)
    model = create_model(settings, task)
    with runtime.start(settings.options.device, settings.options.timeout_s) as ranks:
        setup_logging(directory.path, ranks.rank)
        ranks.watch.on_failure = lambda it: directory.write_status("failed", it.text, it.rank, it.step)
        try:
            train(settings, task, model, directory, ranks)
        except OverError:
            said = "the other replicas finished the run while this one was away"
            log.warning(said)
            directory.write_status("finished", said)


def create_model(settings: Settings, task: Task) -> nn.Module:
    """With the weights that its seed gives it. Raises ConfigError when the model does not fit the data."""
    given = {"input_shape": task.data.input_shape, "outputs": task.objective.outputs, **task.model_arguments}
    wanted = model_parameters(settings)
    if absent := [key for key in RUNTIME["model"] if key not in given and wanted.get(key) is REQUIRED]:
        raise ConfigError(
            f"model: {settings.label('model')} must be told {', '.join(absent)} by the data, which "
            f"{settings.label('dataset')} does not have; choose another model or dataset"
        )
    construct = functools.partial(
        build, "model", settings.model, trusted_packages=settings.options.trusted_packages, **given
    )
    if is_own(settings.model["name"]):
        skeleton(construct)
    seed_everything(settings.options.seed)
    model: nn.Module = construct()
    try:
        return with_heads(model, {each.name: each.outputs for each in task.subtasks}) if task.subtasks else model
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def model_parameters(settings: Settings) -> dict[str, Any]:
    """What the model's constructor takes: name to default."""
    target = locate("model", settings.model["name"], settings.options.trusted_packages)
    return {name: parameter.default for name, parameter in parameters(target).items()}


def train(settings: Settings, task: Task, model: nn.Module, directory: RunDirectory, ranks: Runtime) -> dict[str, Any]:
    """Trains and writes all that a run leaves behind; returns the summary."""
    last_reason = directory.reason() if ranks.rank == 0 else None
    if ranks.rank == 0:
        directory.write_status("running")
    owners = deal(settings.slicing, task, model, ranks.world_size)
    trainer = assemble(settings, task, model, owners, directory, ranks)
    describe(settings, owners, ranks)
    census = Census.of(trainer.order)
    init_sha256 = tensor_sha256(internals(trainer.sync).flat.everything)
    source, first_step = resume(trainer, settings, directory, ranks)
    if settings.options.on_rank_loss == "stop":  # a replica that comes back has its progress from the others
        refuse_a_futile_attempt(directory, ranks, first_step, last_reason, trainer.topology.world)
    joined = trainer.replica_group.begin(trainer.state)
    first_step = trainer.step
    if ranks.rank == 0:
        history = History.read(source, first_step) if source else None
        trainer.tracker = Tracker(directory, task.objective.metric_name, history=history)
        trainer.progress = ConsoleProgress(trainer.total_steps, first_step=first_step)
        trainer.exhibition = Exhibition(task, trainer.tracker, ranks.device, last_step=trainer.total_steps)
    with closing(trainer.tracker):  # when the run fails, too: TensorBoard writes behind
        trainer.tracker.describe(trainer.module, settings.cfg, trainer.exhibition.specimen())
        if census and first_step == 0:
            trainer.tracker.picture("shards", lambda: shards(census, task.presentation.class_names), 0)
        with trainer.progress, tracing(trainer, directory):
            scores = fit(trainer, joined)
        trainer.replica_group.run_collective(
            trainer.state, lambda: leave_model(trainer, settings, task, directory, ranks), "export"
        )
        trainer.replica_group.end()
        summary = summarise(trainer, settings, task, scores) | {
            "task_owners": {name: list(each) for name, each in owners.items()} or None,
            "nodes": ranks.world_size // ranks.local_world_size,
            "init_sha256": init_sha256,
            **trainer.replica_group.facts(),
            **shard_summary(census),
        }
        if ranks.rank == 0:
            directory.write_summary(summary)
            trainer.tracker.finish(summary, hparams(settings, trainer.slots))
            trainer.progress.finish(summary, directory.path)
            directory.write_status("finished", step=trainer.step)
    return summary


def assemble(
    settings: Settings, task: Task, model: nn.Module, owners: Owners, directory: RunDirectory, ranks: Runtime
) -> Trainer:
    options = settings.options
    topology, replica_group = replicas(settings, directory, ranks)
    model.to(ranks.device)
    fingerprint = {
        **redacted({group: settings.cfg[group] for group in FINGERPRINTED}),
        "data_sha256": task.data.sha256,
        **{
            key: getattr(options, key)
            for key in ("seed", "global_batch_size", "accumulation_steps", "precision", "clip_norm", "ema_decay")
        },
        **({"replicas": replica_group.slots} if options.on_rank_loss == "continue" else {}),
    }
    replica_group.require_identical(
        {"code": code_sha256(), "configuration": config_sha256(settings.cfg), "data": sha256_of(task.data.sha256)}
    )
    total_steps = options.total_steps(len(task.data.train))  # type: ignore[arg-type]
    settings.cadence.total_steps = total_steps
    task, sync = partition(task, model, settings.sync, owners, ranks.rank)
    try:
        trainer = Trainer(
            options=options,
            total_steps=total_steps,
            task=task,
            module=model,
            optimizer=settings.optimizer.create(model.parameters()),
            schedule=settings.schedule,
            slicing=settings.slicing,
            sync=sync,
            reducer=settings.reducer,
            topology=topology,
            device=ranks.device,
            fingerprint=fingerprint,
            replica_group=replica_group,
            run_dir=directory.path,
            watch=ranks.watch,
        )
    except ValueError as error:  # a model that cannot be re-homed, ranks whose models differ
        raise ConfigError(str(error)) from error
    seed_everything(options.seed, trainer.slot)
    return trainer


def replicas(settings: Settings, directory: RunDirectory, ranks: Runtime) -> tuple[Topology, ReplicaGroup]:
    """The ranks that torchrun started; or replicas, of which each is the one rank of its own torchrun."""
    options = settings.options
    replica = Replica.read()
    if options.on_rank_loss == "stop" or replica is None:
        topology = Topology.create(options.ranks_per_node)
        return topology, FixedGroup(topology.world)

    def tell(change: Change) -> None:
        directory.write_status("running", str(change), step=change.step)

    def leave_when_asked() -> None:
        if ranks.watch.asked:
            raise PreemptedError(f"{ranks.watch.asked}: stopped while it waited for the other replicas", 0)

    group = ElasticGroup(replica, options.timeout_s, on_change=tell, interrupted=leave_when_asked)
    return Topology(world=group.world, ranks_per_node=1), group


def fit(trainer: Trainer, joined: bool) -> Scores:
    """All steps that are left; again from where the others are, when they went on without this replica."""
    while True:
        try:
            if joined:
                trainer.end_step(trainer.step)
            return trainer.fit()
        except OvertakenError:
            log.warning("the others went on without this replica; it joins them again")
            joined = trainer.replica_group.begin(trainer.state)


def refuse_a_futile_attempt(
    directory: RunDirectory, ranks: Runtime, first_step: int, last_reason: str | None, world: Comm
) -> None:
    futile = attempts.begin(directory, ranks.attempt, first_step, last_reason) if ranks.rank == 0 else ""
    with world.uncounted():
        if futile := tell(world, futile):
            raise NoProgressError(futile)


def describe(settings: Settings, owners: Owners, ranks: Runtime) -> None:
    log.info(
        "%s on %s, sync %s, reducer %s: %d ranks on %s (%s)",
        *(settings.label(group) for group in ("model", "dataset", "sync", "reducer")),
        ranks.world_size,
        ranks.device.type,
        ranks.backend,
    )
    for name, each in owners.items():
        log.info("%s is trained by rank%s %s", name, "s" * (len(each) > 1), ", ".join(map(str, each)))
    for remark in settings.remarks(ranks.world_size):
        (log.info if remark.harmless else log.warning)(remark.text)
    if ranks.rank == 0 and (ports := sockets.told({"torchrun": os.getppid(), "rank 0": os.getpid()})):
        log.info(ports)


def resume(trainer: Trainer, settings: Settings, directory: RunDirectory, ranks: Runtime) -> tuple[Path | None, int]:
    """Where the run goes on from, and after which step: a restarted attempt looks for its own checkpoint first."""
    own, other = directory.path if ranks.attempt > 0 else None, settings.options.resume
    source = own or other
    step = trainer.resume(source) if source else 0
    if step == 0 and own and other:
        source, step = other, trainer.resume(other)
    if source is None:
        return None, 0
    if step == 0:
        if other:
            raise CheckpointError(f"resume: {other / 'checkpoints'} holds no complete checkpoint")
        log.info("attempt %d starts afresh: no complete checkpoint in %s", ranks.attempt, source)
        return source, 0
    if step > trainer.total_steps:
        raise ConfigError(f"max_steps: found {trainer.total_steps}, expected at least the checkpoint's step {step}")
    log.info("resumed from step %d of %s", step, source)
    return source, step


def tracing(trainer: Trainer, directory: RunDirectory) -> AbstractContextManager[None]:
    if trainer.options.profile_steps is None:
        return nullcontext()
    from ddp_agent.training.profiling import traced  # takes half a second to import

    path = directory.path / f"trace.rank{trainer.topology.world.rank}.json.gz"
    return traced(trainer, trainer.options.profile_steps, path)


def leave_model(trainer: Trainer, settings: Settings, task: Task, directory: RunDirectory, ranks: Runtime) -> None:
    with trainer.sync.eval_weights():
        write_model(trainer, settings, task, directory, ranks)
        if ranks.rank == 0:
            write_sample(trainer, task, directory)


def write_model(trainer: Trainer, settings: Settings, task: Task, directory: RunDirectory, ranks: Runtime) -> None:
    name, arguments = settings.model["name"], {k: v for k, v in settings.model.items() if k != "name"}
    taken = model_parameters(settings)
    arguments = redacted(arguments) | {key: value for key, value in task.model_arguments.items() if key in taken}
    description = {
        "name": name,
        "arguments": {**arguments, "input_shape": list(task.data.input_shape), "outputs": task.objective.outputs},
        "dataset": settings.label("dataset"),
        "metric_name": task.objective.metric_name,
        "tasks": {each.name: each.outputs for each in task.subtasks},
    }
    if trainer.sync.buffers == "recalibrate":
        trainer.recalibrate()
    if ranks.rank == 0:
        export.save(directory.path, trainer.module, description=description)
    if trainer.ema is not None:
        with trainer.ema.eval_weights(internals(trainer.sync).mean_) as averaged:
            if ranks.rank == 0:
                export.save(directory.path / "ema", averaged, description=description)


def write_sample(trainer: Trainer, task: Task, directory: RunDirectory) -> None:
    if task.presentation.sample is None:
        return
    with inference(trainer.module):
        text = task.presentation.sample(trainer.module)
    write_atomically(directory.sample, text)
    trainer.tracker.text("sample", text, trainer.step)


def summarise(trainer: Trainer, settings: Settings, task: Task, scores: Scores) -> dict[str, Any]:
    """Bytes are rank 0's, times those of the slowest rank."""
    options, costs = settings.options, trainer.costs()
    times = slowest({key: value for key, value in costs.items() if key.endswith("_s")}, trainer.topology)
    samples = trainer.step * options.global_batch_size
    return {
        "status": "finished",
        **{group: settings.label(group) for group in ("dataset", "slicing", "model", "sync", "cadence", "reducer")},
        "period": settings.cfg["sync"].get("period"),
        "world_size": trainer.slots,
        "seed": options.seed,
        "steps": trainer.step,
        "samples": samples,
        "params": internals(trainer.sync).flat.parameters.numel(),
        "metric_name": task.objective.metric_name,
        "higher_is_better": task.objective.higher_is_better,
        "test_metric": scores.metric,
        "test_loss": scores.loss,
        **class_accuracies(scores.confusion, task.presentation.class_names),
        "task_metrics": {each.name: scores.more[f"{each.name}_{task.objective.metric_name}"] for each in task.subtasks}
        or None,
        **times,
        "syncs": internals(trainer.sync).syncs,
        "collectives": trainer.topology.world.stats.calls,
        "payload_bytes": costs["payload_bytes"],
        "wire_bytes": costs["wire_bytes"],
        **link.summary(trainer.link),
        **dict.fromkeys(DIAGNOSTICS),
        "consensus_distance": trainer.consensus_distance,  # at the end, where no synchronisation was looked at
        **trainer.diagnostics.latest,
        "target": options.target,
        **asdict(trainer.standing),
        "samples_per_s": samples / times["train_s"],
        "peak_memory_bytes": largest(environment.peak_memory_bytes(trainer.device), trainer.topology),
        **environment.describe(trainer.device),
        "data_sha256": task.data.sha256,
        "order_sha256": trainer.order.sha256(options.global_batch_size),
    }


def slowest(times: Mapping[str, float], topology: Topology) -> dict[str, float]:
    """The times of the rank that trained longest; one rank's, so that they still add up."""
    world = topology.world
    with world.uncounted():
        mine = torch.tensor(list(times.values()), dtype=torch.float64, device=world.device)
        gathered: list[list[float]] = [other.tolist() for other in world.all_gather(mine)]
    train_s = list(times).index("train_s")
    worst = max(range(world.size), key=lambda rank: gathered[rank][train_s])
    return dict(zip(times, gathered[worst], strict=True))


def largest(count: int, topology: Topology) -> int:
    world = topology.world
    with world.uncounted():
        among = torch.tensor([count], device=world.device)
        world.all_reduce_(among, "max")
    return int(among)


def hparams(settings: Settings, world_size: int) -> dict[str, Any]:
    options = ("seed", "global_batch_size", "accumulation_steps", "precision")
    return {
        **{
            group: settings.label(group)
            for group in ("model", "dataset", "slicing", "sync", "cadence", "reducer", "optimizer", "schedule")
        },
        **{f"sync.{key}": value for key, value in settings.cfg["sync"].items() if key != "name"},
        "lr": settings.optimizer.lr,
        "world_size": world_size,
        **{key: getattr(settings.options, key) for key in options},
    }


def tensor_sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
