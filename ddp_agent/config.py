"""What a whole configuration may hold, and what its parts ask of each other."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ddp_agent.build import build, problems, schema_problems
from ddp_agent.checkpoint import newest
from ddp_agent.datasets.base import Task
from ddp_agent.errors import CheckpointError, ConfigError
from ddp_agent.fields import coerce, parameters
from ddp_agent.optimizers import SGD, AdamW
from ddp_agent.options import Options
from ddp_agent.reducers import Reducer
from ddp_agent.schedules import Schedule
from ddp_agent.sync import PostLocalSGD, SyncStrategy

GROUPS = ("model", "dataset", "sync", "reducer", "optimizer", "schedule")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration that was checked: options, and what every group builds before there is data."""

    options: Options
    model: Mapping[str, Any]  # built when input and output shapes are known
    dataset: Any
    sync: SyncStrategy
    reducer: Reducer
    optimizer: SGD | AdamW
    schedule: Schedule
    choices: Mapping[str, str]  # the config file chosen in each group: what a run is called by
    cfg: Mapping[str, Any]

    def label(self, group: str) -> str:
        return self.choices.get(group, str(self.cfg[group]["name"]))

    def micro_batch(self, world_size: int) -> int:
        return self.options.global_batch_size // (world_size * self.options.accumulation_steps)


def parse(cfg: Mapping[str, Any], *, choices: Mapping[str, str], world_size: int) -> Settings:
    """Checks everything that can be known without data. Raises ConfigError with all problems at once."""
    found = [f"{key}: found _target_, but objects are named by `name:` here" for key in _targets(cfg)]
    root = {key: value for key, value in cfg.items() if key not in GROUPS}
    found += schema_problems(root, parameters(Options), also_known=GROUPS)
    trusted = root.get("trusted_packages") or []
    for group in GROUPS:
        found += _group_problems(group, cfg.get(group), trusted)
    if found:
        raise ConfigError(found)
    options = Options(
        **{key: coerce(root[key], parameter.annotation) for key, parameter in parameters(Options).items()}
    )
    built, found = _build_groups(cfg, options)
    found += list(_option_problems(options, world_size))
    if "sync" in built and "reducer" in built and (refused := built["sync"].refusal(built["reducer"])):
        found.append(f"reducer: {refused}")
    if options.max_steps is not None:
        found += list(_length_problems(built, options.max_steps))
    if found:
        raise ConfigError(found)
    return Settings(options=options, model=cfg["model"], choices=choices, cfg=cfg, **built)


def check_against_data(settings: Settings, task: Task, world_size: int) -> None:
    """Checks what depends on the size of the data. Raises ConfigError with all problems at once."""
    samples, options = _size(task.train), settings.options
    found = []
    if options.global_batch_size > samples:
        found.append(
            f"global_batch_size: found {options.global_batch_size}, expected at most the {samples} training samples"
        )
    if world_size > samples:
        found.append(f"nproc_per_node: found {world_size} ranks for {samples} training samples, expected fewer ranks")
    if _size(task.test) == 0:
        found.append("dataset: found no test samples")
    built = {"sync": settings.sync, "schedule": settings.schedule}
    if options.max_steps is None:
        found += list(_length_problems(built, options.total_steps(samples)))
    if found:
        raise ConfigError(found)


def _group_problems(group: str, node: Any, trusted: Sequence[str]) -> list[str]:
    if not isinstance(node, Mapping):
        return [f"{group}: found {node!r}, expected a choice from conf/{group}/"]
    runtime = {"model": ("input_shape", "outputs"), "dataset": ("data_root",)}.get(group, ())
    return problems(group, node, trusted_packages=trusted, runtime=runtime)


def _build_groups(cfg: Mapping[str, Any], options: Options) -> tuple[dict[str, Any], list[str]]:
    built: dict[str, Any] = {}
    found: list[str] = []
    for group in GROUPS:
        if group == "model":
            continue
        runtime = {"data_root": options.data_root} if group == "dataset" else {}
        try:
            built[group] = build(group, cfg[group], trusted_packages=options.trusted_packages, **runtime)
        except ConfigError as error:
            found += error.problems
    return built, found


def _option_problems(options: Options, world_size: int) -> Iterator[str]:
    ways = world_size * options.accumulation_steps
    if options.global_batch_size % ways:
        near = max(1, round(options.global_batch_size / ways)) * ways
        yield (
            f"global_batch_size: found {options.global_batch_size}, expected a multiple of {world_size} ranks x "
            f"{options.accumulation_steps} accumulation_steps, such as {near}"
        )
    if options.epochs is None and options.max_steps is None:
        yield "epochs: found null, and max_steps too; expected one of them"
    if not RUN_NAME.fullmatch(options.run_name):
        yield f"run_name: found {options.run_name!r}, expected letters, digits, '.', '_' and '-', at most 100"
    if options.resume is not None:
        yield from _resume_problems(options.resume)


def _resume_problems(run_dir: Path) -> Iterator[str]:
    if not run_dir.is_dir():
        yield f"resume: found {str(run_dir)!r}, which is no directory; expected the directory of an earlier run"
    elif not newest(run_dir / "checkpoints"):
        raise CheckpointError(f"resume: {run_dir / 'checkpoints'} holds no complete checkpoint")


def _length_problems(built: Mapping[str, Any], total_steps: int) -> Iterator[str]:
    sync, schedule = built.get("sync"), built.get("schedule")
    if isinstance(sync, PostLocalSGD) and sync.switch_step > total_steps:
        yield f"sync.switch_step: found {sync.switch_step}, expected at most the run's {total_steps} steps"
    if schedule is not None and schedule.warmup_steps > total_steps:
        yield f"schedule.warmup_steps: found {schedule.warmup_steps}, expected at most the run's {total_steps} steps"


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


def _size(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]
