"""What a whole configuration may hold, and what its parts ask of each other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from ddp_agent.checkpoint.folder import newest
from ddp_agent.config.fields import Parameter, coerce, fits, parameters
from ddp_agent.config.options import UNTRACED_STEPS, Options
from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.config.registry import build, problems, schema_problems
from ddp_agent.data.slicing.base import SampleAttributes, Slicing
from ddp_agent.data.task import Task
from ddp_agent.errors import CheckpointError, ConfigError
from ddp_agent.reducers import Reducer
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.cadences.base import Cadence
from ddp_agent.training.optimizers import SGD, AdamW
from ddp_agent.training.schedules import Schedule

GROUPS = ("model", "dataset", "slicing", "cadence", "sync", "reducer", "optimizer", "schedule")
# What the run tells a constructor: root keys, shapes and sizes of the data, and another group's object.
RUNTIME = {
    "model": ("input_shape", "outputs", "vocabulary", "users", "items", "mean"),
    "dataset": ("data_root",),
    "cadence": ("total_steps",),
    "sync": ("cadence",),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration that was checked: options, and what every group builds before there is data."""

    options: Options
    model: Mapping[str, Any]  # built when input and output shapes are known
    dataset: Any
    slicing: Slicing
    cadence: Cadence
    sync: SyncStrategy
    reducer: Reducer
    optimizer: SGD | AdamW
    schedule: Schedule
    choices: Mapping[str, str]  # the config file chosen in each group: what a run is called by
    cfg: Mapping[str, Any]

    def label(self, group: str) -> str:
        return self.choices.get(group, str(self.cfg[group]["name"]))

    def for_steps(self, total_steps: int) -> Self:
        """Return the settings of a run of this length, which may depend on the size of the data."""
        cadence = replace(self.cadence, total_steps=total_steps)
        changed: dict[str, Any] = {"cadence": cadence} if "cadence" in parameters(type(self.sync)) else {}
        return replace(self, cadence=cadence, sync=replace(self.sync, **changed))

    def problems(self, world_size: int, **known: Any) -> list[Problem]:
        """Return what the pieces say of a run of these settings. `known`: further fields of `RunFacts`."""
        built = {group: getattr(self, group) for group in GROUPS}
        return _said(built, replace(_facts(built, vars(self.options), world_size), **known))

    def remarks(self, world_size: int) -> list[Problem]:
        """Return what the pieces say of a run that may start."""
        return [problem for problem in self.problems(world_size) if not problem.fatal]

    def micro_batch(self, world_size: int) -> int:
        return self.options.global_batch_size // (world_size * self.options.accumulation_steps)


def parse(cfg: Mapping[str, Any], *, choices: Mapping[str, str], world_size: int) -> Settings:
    """Checks everything that can be known without data. Raises ConfigError with all problems at once."""
    root = {key: value for key, value in cfg.items() if key not in GROUPS}
    found = schema_problems(root, parameters(Options), also_known=GROUPS)
    right = _right(root, parameters(Options))
    built, wrong = _build_groups(cfg, right)
    found += [*wrong, *_option_problems(right, world_size)]
    found += [str(problem) for problem in _said(built, _facts(built, right, world_size)) if problem.fatal]
    if targets := list(_targets(cfg)):
        found = [line for line in found if line.partition(":")[0] not in targets]
        found += [f"{key}: found _target_, but objects are named by `name:` here" for key in targets]
    if found:
        raise ConfigError(found)
    options = Options(**right)
    if options.resume is not None and not newest(options.resume / "checkpoints"):
        raise CheckpointError(f"resume: {options.resume / 'checkpoints'} holds no complete checkpoint")
    return Settings(options=options, model=cfg["model"], choices=choices, cfg=cfg, **built)


def check_against_data(settings: Settings, task: Task, world_size: int) -> None:
    """Checks what depends on the size of the data. Raises ConfigError with all problems at once."""
    samples, options = task.data.train_count, settings.options
    found = []
    if options.global_batch_size > samples:
        found.append(
            f"global_batch_size: found {options.global_batch_size}, expected at most the {samples} training samples"
        )
    if world_size > samples:
        found.append(f"nproc_per_node: found {world_size} ranks for {samples} training samples, expected fewer ranks")
    if task.data.test_count == 0:
        found.append("dataset: found no test samples")
    total_steps = options.total_steps(samples)
    known = {
        "total_steps": total_steps,
        "epochs": -(-total_steps * options.global_batch_size // samples),
        "samples": SampleAttributes.of(task.data),
        "subtasks": tuple(subtask.name for subtask in task.subtasks),
    }
    found += [str(problem) for problem in settings.problems(world_size, **known) if problem.fatal]
    if options.profile_steps is not None and UNTRACED_STEPS + options.profile_steps > total_steps:
        found.append(
            f"profile_steps: found {options.profile_steps} after {UNTRACED_STEPS} that are not traced, expected at "
            f"most the run's {total_steps} steps together"
        )
    if found:
        raise ConfigError(found)


def _right(given: Mapping[str, Any], accepted: Mapping[str, Parameter]) -> dict[str, Any]:
    """The values that are right by themselves: what they ask of each other is told in the same message."""
    return {
        key: coerce(given[key], parameter.annotation)
        for key, parameter in accepted.items()
        if key in given and fits(given[key], parameter.annotation)
    }


def _build_groups(cfg: Mapping[str, Any], right: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the groups build that have all they need, and everything that is wrong with any of them."""
    built: dict[str, Any] = {}
    found: list[str] = []
    trusted = right.get("trusted_packages", [])
    for group in GROUPS:
        node, wanted = cfg.get(group), RUNTIME.get(group, ())
        known = {"total_steps": right.get("max_steps"), **right, **built}
        given = {key: known[key] for key in wanted if key in known}
        if not isinstance(node, Mapping):
            found.append(f"{group}: found {node!r}, expected a choice from conf/{group}/")
        elif len(given) < len(wanted):
            found += problems(group, node, trusted_packages=trusted, runtime=wanted)
        else:
            try:
                built[group] = build(group, node, trusted_packages=trusted, **given)
            except ConfigError as error:
                found += error.problems
    return built, found


def _option_problems(right: Mapping[str, Any], world_size: int) -> Iterator[str]:
    batch, accumulation = right.get("global_batch_size"), right.get("accumulation_steps")
    if batch and accumulation and batch % (ways := world_size * accumulation):
        near = max(1, round(batch / ways)) * ways
        yield (
            f"global_batch_size: found {batch}, expected a multiple of {world_size} ranks x "
            f"{accumulation} accumulation_steps, such as {near}"
        )
    if {"epochs", "max_steps"} <= right.keys() and right["epochs"] is None and right["max_steps"] is None:
        yield "epochs: found null, and max_steps too; expected one of them"
    resume = right.get("resume")
    if resume is not None and not resume.is_dir():
        yield f"resume: found {str(resume)!r}, which is no directory; expected the directory of an earlier run"
    ranks_per_node = right.get("ranks_per_node") or world_size
    if world_size % ranks_per_node:
        divisors = [str(count) for count in range(1, world_size + 1) if world_size % count == 0]
        yield (
            f"ranks_per_node: found {ranks_per_node}, expected a divisor of the {world_size} ranks: "
            f"{', '.join(divisors)}"
        )


def _facts(built: Mapping[str, Any], options: Mapping[str, Any], world_size: int) -> RunFacts:
    """Return what is known of the run before there is data; `total_steps` is max_steps."""
    slicing = built.get("slicing")
    return RunFacts(
        world_size=world_size,
        ranks_per_node=options.get("ranks_per_node") or world_size,
        total_steps=options.get("max_steps"),
        precision=options.get("precision"),
        on_rank_loss=options.get("on_rank_loss", "stop"),
        seed=options.get("seed", 0),
        tasks_are_partitioned=slicing is not None and slicing.tasks == "partition",
        pieces=built,
    )


def _said(built: Mapping[str, Any], run: RunFacts) -> list[Problem]:
    """Return what the pieces say of a run. The other groups have nothing to say before there is data."""
    asked = [built[group] for group in ("slicing", "cadence", "sync", "reducer", "schedule") if group in built]
    return [problem for piece in asked for problem in piece.problems(run)]


def _targets(node: Any, path: str = "") -> Iterator[str]:
    """Where a config holds Hydra's `_target_`: a config file from someone else must not name code to run."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if str(key).startswith("_target_"):
                yield here
            yield from _targets(value, here)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _targets(value, f"{path}[{index}]")
