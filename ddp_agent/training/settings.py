"""The checked configuration of a run: its types, its values, and what its parts require of each other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from ddp_agent.checkpoint.folder import newest
from ddp_agent.config.fields import coerce, fits, parameters
from ddp_agent.config.options import UNTRACED_STEPS, Options
from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.config.registry import build, problems, schema_problems
from ddp_agent.data.slicing.base import SampleAttributes, Slicing
from ddp_agent.data.task import Task
from ddp_agent.errors import CheckpointError, ConfigError
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.reducers import Reducer
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.cadences.base import Cadence
from ddp_agent.training.optimizers import SGD, AdamW
from ddp_agent.training.schedules import Schedule

GROUPS = ("model", "dataset", "slicing", "cadence", "sync", "reducer", "optimizer", "schedule")
# Arguments that a constructor gets from the run: root keys, shapes and sizes of the data, another group's object.
RUNTIME = {
    "model": ("input_shape", "outputs", "vocabulary", "users", "items", "mean"),
    "dataset": ("data_root",),
    "cadence": ("total_steps",),
    "sync": ("cadence",),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration that was checked: its options, and the objects that its groups describe."""

    options: Options
    model: Mapping[str, Any]
    """The node of the model, which is built as soon as input and output shapes are known."""
    dataset: Any
    slicing: Slicing
    cadence: Cadence
    sync: SyncStrategy
    reducer: Reducer
    optimizer: SGD | AdamW
    schedule: Schedule
    choices: Mapping[str, str]
    """The config file chosen in each group, which labels that part of the run."""
    cfg: Mapping[str, Any]

    def label(self, group: str) -> str:
        """Return the name of a group's config file, or of its class if no file describes it."""
        return self.choices.get(group, str(self.cfg[group]["name"]))

    def for_steps(self, total_steps: int) -> Self:
        """Return the settings of a run of this length, which may depend on the size of the data."""
        cadence = replace(self.cadence, total_steps=total_steps)
        changed: dict[str, Any] = {"cadence": cadence} if "cadence" in parameters(type(self.sync)) else {}
        return replace(self, cadence=cadence, sync=replace(self.sync, **changed))

    def problems(self, world_size: int, **known: Any) -> list[Problem]:
        """Return the problems that the pieces see in a run of these settings. `known`: further fields of `RunFacts`."""
        built = {group: getattr(self, group) for group in GROUPS}
        return _problems_of(built, vars(self.options), world_size, **known)


def parse(cfg: Mapping[str, Any], *, choices: Mapping[str, str], world_size: int) -> Settings:
    """Check everything that can be known without data. Raises ConfigError with all problems at once.

    Raises CheckpointError if the run to resume has no complete checkpoint.
    """
    root = {key: value for key, value in cfg.items() if key not in GROUPS}
    accepted = parameters(Options)
    messages = schema_problems(root, accepted, also_known=GROUPS)
    # Options that are valid by themselves, so that one message can also tell how they conflict.
    types = {key: accepted[key].annotation for key in accepted if key in root}
    valid = {key: coerce(root[key], kind) for key, kind in types.items() if fits(root[key], kind)}
    built, invalid = _build_groups(cfg, valid)
    messages += [*invalid, *_option_problems(valid, world_size)]
    messages += [str(problem) for problem in _problems_of(built, valid, world_size) if problem.fatal]
    if targets := list(_targets(cfg)):
        messages = [line for line in messages if line.partition(":")[0] not in targets]
        messages += [f"{key}: found _target_, but objects are named by `name:` here" for key in targets]
    if messages:
        raise ConfigError(messages)
    options = Options(**valid)
    if options.resume is not None and not newest(RunFiles(options.resume).checkpoints):
        raise CheckpointError(f"resume: {RunFiles(options.resume).checkpoints} holds no complete checkpoint")
    return Settings(options=options, model=cfg["model"], choices=choices, cfg=cfg, **built)


def check_against_data(settings: Settings, task: Task, world_size: int) -> None:
    """Check everything that depends on the data. Raises ConfigError with all problems at once."""
    if not isinstance(task, Task):
        raise ConfigError(
            f"dataset: load() of {settings.label('dataset')} returns {type(task).__name__}, expected a Task"
        )
    samples, options, batch = task.data.train_count, settings.options, settings.options.global_batch_size
    messages = []
    if batch > samples:
        messages.append(f"global_batch_size: found {batch}, expected at most the {samples} training samples")
    if world_size > samples:
        messages.append(
            f"nproc_per_node: found {world_size} ranks for {samples} training samples, expected fewer ranks"
        )
    if task.data.test_count == 0:
        messages.append("dataset: found no test samples")
    total_steps = options.total_steps(samples)
    known = {
        "total_steps": total_steps,
        "epochs": -(-total_steps * batch // samples),
        "samples": SampleAttributes.of(task.data),
        "subtasks": tuple(subtask.name for subtask in task.subtasks),
    }
    messages += [str(problem) for problem in settings.problems(world_size, **known) if problem.fatal]
    if options.profile_steps is not None and UNTRACED_STEPS + options.profile_steps > total_steps:
        messages.append(
            f"profile_steps: found {options.profile_steps} after {UNTRACED_STEPS} that are not traced, expected at "
            f"most the run's {total_steps} steps together"
        )
    if messages:
        raise ConfigError(messages)


def _build_groups(cfg: Mapping[str, Any], valid: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the objects of all groups that are valid and complete, and the problems of all groups."""
    built: dict[str, Any] = {}
    messages: list[str] = []
    trusted = valid.get("trusted_packages", [])
    for group in GROUPS:
        node, wanted = cfg.get(group), RUNTIME.get(group, ())
        known = {"total_steps": valid.get("max_steps"), **valid, **built}
        given = {key: known[key] for key in wanted if key in known}
        if not isinstance(node, Mapping):
            messages.append(f"{group}: found {node!r}, expected a choice from conf/{group}/")
        elif len(given) < len(wanted):
            messages += problems(group, node, trusted_packages=trusted, runtime=wanted)
        else:
            try:
                built[group] = build(group, node, trusted_packages=trusted, **given)
            except ConfigError as error:
                messages += error.problems
    return built, messages


def _option_problems(valid: Mapping[str, Any], world_size: int) -> Iterator[str]:
    batch, accumulation = valid.get("global_batch_size"), valid.get("accumulation_steps")
    if batch and accumulation and batch % (ways := world_size * accumulation):
        near = max(1, round(batch / ways)) * ways
        yield (
            f"global_batch_size: found {batch}, expected a multiple of {world_size} ranks x "
            f"{accumulation} accumulation_steps, such as {near}"
        )
    if {"epochs", "max_steps"} <= valid.keys() and valid["epochs"] is None and valid["max_steps"] is None:
        yield "epochs: found null, and max_steps too; expected one of them"
    resume = valid.get("resume")
    if resume is not None and not resume.is_dir():
        yield f"resume: found {str(resume)!r}, which is no directory; expected the directory of an earlier run"
    ranks_per_node = valid.get("ranks_per_node") or world_size
    if world_size % ranks_per_node:
        divisors = [str(count) for count in range(1, world_size + 1) if world_size % count == 0]
        yield (
            f"ranks_per_node: found {ranks_per_node}, expected a divisor of the {world_size} ranks: "
            f"{', '.join(divisors)}"
        )


def _problems_of(built: Mapping[str, Any], options: Mapping[str, Any], world_size: int, **known: Any) -> list[Problem]:
    """Return the problems that the pieces see in a run. Before there is data, `total_steps` is max_steps."""
    slicing = built.get("slicing")
    facts = RunFacts(
        world_size=world_size,
        ranks_per_node=options.get("ranks_per_node") or world_size,
        total_steps=options.get("max_steps"),
        precision=options.get("precision"),
        on_rank_loss=options.get("on_rank_loss", "stop"),
        seed=options.get("seed", 0),
        tasks_are_partitioned=slicing is not None and slicing.tasks == "partition",
        pieces=built,
    )
    pieces = [built[group] for group in ("slicing", "cadence", "sync", "reducer", "schedule") if group in built]
    return [problem for piece in pieces for problem in piece.problems(replace(facts, **known))]


def _targets(node: Any, path: str = "") -> Iterator[str]:
    """Yield the keys that hold Hydra's `_target_`: a config file from someone else must not name code to run."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if str(key).startswith("_target_"):
                yield here
            yield from _targets(value, here)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _targets(value, f"{path}[{index}]")
