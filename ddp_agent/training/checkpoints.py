"""A run's state is saved here, and loaded when the run continues."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddp_agent.checkpoint.loading import load
from ddp_agent.checkpoint.manifest import Fingerprint
from ddp_agent.checkpoint.writer import Writer
from ddp_agent.config.command_line import override
from ddp_agent.config.fields import parameters
from ddp_agent.config.redaction import redacted
from ddp_agent.config.registry import locate
from ddp_agent.config.untrusted import plain
from ddp_agent.data.task import Task
from ddp_agent.distributed.error_propagation import broadcast_text, on_rank_0
from ddp_agent.errors import CheckpointError, ConfigError, LostDirectoryError
from ddp_agent.outputs.log import setup_logging
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.training.evaluate import Scored
from ddp_agent.training.session import Session
from ddp_agent.training.settings import Settings
from ddp_agent.training.state_structure import misshapen_moment

log = logging.getLogger(__name__)

# A resumed run must have these in common with its checkpoint.
GROUPS = ("model", "slicing", "sync", "cadence", "reducer", "optimizer", "schedule")
OPTIONS = ("seed", "global_batch_size", "accumulation_steps", "precision", "clip_norm", "ema_decay")

# Settings that were removed, with the value under which earlier versions did what happens now: {"sync.name": value}.
RETIRED: dict[str, Any] = {}


class Checkpoints:
    """The checkpoints of a session, handed to `writer`. Without a writer nothing is saved.

    `directory` holds them. If it is lost, the state is saved in a new one, and the run ends.
    """

    def __init__(self, session: Session, writer: Writer | None, directory: RunDirectory | None = None) -> None:
        self.writer, self._directory = writer, directory
        self._session = session

    def is_due(self, step: int, scored: Scored | None) -> bool:
        """Return whether the state after `step` is to be saved: regularly, or as the best so far."""
        options = self._session.setup.options
        regular = options.checkpoint_every is not None and step % options.checkpoint_every == 0
        best = options.keep_best_checkpoint and scored is not None and scored.best and scored.step == step
        return regular or best

    def save(self, scored: Scored | None) -> bool:
        """Save the state, unless there is no writer. Return whether it was. A collective.

        Raises NonFiniteError or DivergedError for a state that must not be kept.
        """
        if self.writer is None:
            return False
        self.require_directory()
        self._save(self.writer, scored)
        return True

    def _save(self, writer: Writer, scored: Scored | None) -> None:
        session, objective = self._session, self._session.setup.task.objective
        session.settle()
        session.state.position.finite_loss(session.setup.topology.world.rank)
        with session.clock.phase("checkpoint"):
            session.compare_ranks()
            details = {  # for people and tools
                "sync": type(session.setup.sync).__name__,
                "metric_name": objective.metric_name,
                "higher_is_better": objective.higher_is_better,
                "metric": scored.metric if scored is not None and scored.step == session.step else None,
            }
            writer.save(session.step, session.state.state_dict(), details)

    def require_directory(self) -> None:
        """Raise LostDirectoryError, on all ranks, if the run directory is not the one that was claimed. A collective.

        The state is saved in a new directory before.
        """
        writer, directory, step = self.writer, self._directory, self._session.step
        if writer is None or directory is None:
            return
        with writer.comm.uncounted():
            if not (problem := broadcast_text(writer.comm, directory.problem())):
                return
            found = on_rank_0(writer.comm, directory.relocate)
            directory.relocate(Path(broadcast_text(writer.comm, str(found or ""))))
        setup_logging(directory.path, self._session.setup.topology.world.rank)
        with suppress(CheckpointError):  # of the directory that is lost
            writer.wait()
        writer.directory = directory.checkpoints
        if step:
            self._save(writer, None)
            self.wait()
        raise LostDirectoryError(
            f"{problem}. The state after step {step} is saved in {directory.path}; continue with "
            f"{override('resume', directory.path)}",
            step,
        )

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk."""
        if self.writer is not None:
            with self._session.clock.phase("checkpoint"):
                self.writer.wait()


def fingerprint(
    settings: Settings, task: Task, replicas: int | None, shipped: Mapping[str, Any] | None = None
) -> Fingerprint:
    """Return the settings that a checkpoint shares with every run that may continue from it.

    `shipped`: the values of this package's configs, which a setting has that nobody typed.
    """
    recorded = {
        **redacted({group: settings.cfg[group] for group in GROUPS}),
        "data_sha256": task.data.sha256,
        **{key: getattr(settings.options, key) for key in OPTIONS},
        **({"replicas": replicas} if replicas is not None else {}),
    }
    return Fingerprint(recorded, _defaults(settings, shipped or {}))


def _defaults(settings: Settings, shipped: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value that a setting had before a version recorded it.

    It is the default of the constructor's argument, or else the shipped value: a new setting comes with the value that
    does what happened before.
    """
    defaults: dict[str, Any] = {key: shipped[key] for key in OPTIONS if key in shipped and key != "seed"}
    for group in GROUPS:
        node = settings.cfg[group]
        accepted = parameters(locate(group, node["name"], settings.options.trusted_packages))
        own = {key: value.default for key, value in accepted.items() if _is_recordable(value.default)}
        defaults[group] = {**shipped.get(group, {}), **own}
    return defaults | RETIRED


def _is_recordable(default: Any) -> bool:
    """Return whether a configuration could hold `default`: no object, and no argument without one."""
    if isinstance(default, Mapping):
        return all(isinstance(key, str) and _is_recordable(value) for key, value in default.items())
    if isinstance(default, list | tuple):
        return all(map(_is_recordable, default))
    return default is None or isinstance(default, str | int | float)


def resume(session: Session, fingerprint: Mapping[str, Any], directory: Path, attempt: int) -> Path | None:
    """Load the state to continue from, if there is one. Return the run directory where it was looked for last.

    A run that torchrun restarted (`attempt` > 0) continues from its own newest complete checkpoint in `directory`, any
    other from the one that `resume=` names. A restarted run without a checkpoint starts from scratch. A collective.
    """
    own, other = directory if attempt > 0 else None, session.setup.options.resume
    source = own or other
    if source is None:
        return None
    step = load_state(session, source, fingerprint)
    if step == 0 and own and other:
        source, step = other, load_state(session, other, fingerprint)
    if step == 0:
        if other:
            raise CheckpointError(f"resume: {RunFiles(other).checkpoints} holds no complete checkpoint")
        log.info("attempt %d starts from scratch: no complete checkpoint in %s", attempt, source)
        return source
    total_steps = session.setup.total_steps
    key = "max_steps" if session.setup.options.max_steps is not None else "epochs"
    if step > total_steps:
        raise ConfigError(f"{key}: found {total_steps}, expected at least the checkpoint's step {step}")
    if step == total_steps and not own and RunFiles(source).read_status().get("status") == "finished":
        raise ConfigError(
            f"resume: {source} has finished its {step} steps; to train on, type a larger {key} as well, such as "
            f"{key}={2 * (getattr(session.setup.options, key) or 1)}"
        )
    log.info("resumed from step %d of %s", step, source)
    return source


def load_state(session: Session, run_dir: Path, fingerprint: Mapping[str, Any]) -> int:
    """Load the newest complete checkpoint of a run and return its step, or 0 if there is none. A collective."""
    setup = session.setup
    loaded = load(
        RunFiles(run_dir).checkpoints,
        comm=setup.topology.world,
        fingerprint=fingerprint,
        of_other_ranks=setup.options.resume_other_ranks,
    )
    if loaded is None:
        return 0
    rehearse(session)
    try:
        session.state.load_state_dict(loaded[1])
        if session.step != loaded[0]:
            raise ValueError(f"state.step: found {session.step}, expected {loaded[0]}")
        if problem := misshapen_moment(setup.optimizer):
            raise ValueError(problem)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{run_dir}: the checkpoint of step {loaded[0]} holds a state that this run cannot take "
            f"({type(error).__name__}: {plain(error, 300)})"
        ) from error
    return session.step


def rehearse(session: Session) -> None:
    """Run two passes and throw their results away.

    DistributedDataParallel settles the order of its sums in the first pass, and uses it from the second on. Without
    them a resumed run of three or more ranks would add in another order (a difference of 4e-8).
    """
    setup = session.setup
    inputs, target = next(session.batches.steps(1, setup.total_steps))
    with setup.topology.world.uncounted():
        for _ in range(2):
            with setup.sync.backward_context(1, last_micro_batch=True):
                session.forward.loss(inputs, target).backward()
            setup.sync.before_step(1)
            setup.optimizer.zero_grad(set_to_none=True)
