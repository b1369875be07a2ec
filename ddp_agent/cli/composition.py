"""Composition of a configuration with Hydra, with one line per wrong override or key."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ddp_agent.cli import trust
from ddp_agent.cli.explanation import explain, in_one_line
from ddp_agent.cli.loader import Loader
from ddp_agent.config.help_text import class_in
from ddp_agent.config.redaction import holds_known_secret, redacted, remember, remember_overrides
from ddp_agent.config.untrusted import plain, read_text
from ddp_agent.errors import ConfigError, RefusedError
from ddp_agent.outputs.files import write_atomically
from ddp_agent.outputs.run_directory import RunDirectory

VERSION_BASE = "1.3"
_LONGEST = 10_000  # characters of an override; for twice as many Hydra's parser takes 30 s
RUN_TIME = "DDP_AGENT_RUN_TIME"  # start of the run, agreed by its ranks: a part of directory names
RUN_DIR = "DDP_AGENT_RUN_DIR"  # set for a job of a sweep. Not an override: such paths contain = and ,
NPROC_PER_NODE = "DDP_AGENT_NPROC_PER_NODE"  # set by a sweep under torchrun for its jobs


def run_time() -> str:
    """Return the start of the run, the same for this process and those that it starts.

    It has milliseconds, since two runs may start within one second.
    """
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]
    os.environ[RUN_TIME] = os.environ.get(RUN_TIME) or now
    return os.environ[RUN_TIME]


# In the package, not in train.py: submitit unpickles a sweep's jobs in processes that never import train.py.
# Cached, so that Hydra hands the driver's value on to such jobs.
OmegaConf.register_new_resolver("run_time", run_time, use_cache=True, replace=True)


@dataclass(frozen=True, kw_only=True)
class LaunchContext:
    """Argument of `check` and `work`: the configuration, and how the run was started."""

    cfg: dict[str, Any]  # resolved, without the `hydra` node
    choices: dict[str, str]  # the file chosen in each config group, unless its `name:` was overridden
    overrides: list[str]  # as typed, without `hydra.…`
    run_dir: Path  # absolute, the same on all ranks and attempts; made after `check` and before `work`
    world_size: int
    attempt: int = 0  # 1, 2, … after torchrun restarted the ranks


Check = Callable[[LaunchContext], None]
Work = Callable[[LaunchContext, RunDirectory], int | None]


@dataclass(frozen=True, kw_only=True)
class Configs:
    """Folders and name of a configuration's files."""

    folder: Path
    name: str
    extra_folder: Path | None = None

    def compose(self, overrides: Sequence[str]) -> "Composed":
        """Return the configuration of all overrides that are right; `problems` has a line for each other one.

        Raises ConfigError when the files themselves are wrong.
        """
        with self.hydra(overrides) as instance:
            loader = instance.config_loader
            try:
                return Composed(self._compose(overrides), loader)
            except ConfigError:
                raise
            except Exception:  # Hydra, OmegaConf and their parsers raise many kinds for what a user can type
                return self._compose_valid(overrides, loader)

    @contextmanager
    def hydra(self, overrides: Sequence[str]) -> Iterator[Any]:
        """Yield Hydra, set up for these files. It refuses what a file must not do. Raises ConfigError as well."""
        remember_overrides(overrides)
        if long := [override for override in overrides if len(override) > _LONGEST]:
            most = f"characters, expected at most {_LONGEST:,}"
            raise ConfigError([f"{plain(override, 80)}: found {len(override):,} {most}" for override in long])
        if refused := trust.file_problems(folder for folder in (self.folder, self.extra_folder) if folder):
            raise ConfigError(refused)
        with hydra.initialize_config_dir(str(self.folder), job_name="train", version_base=VERSION_BASE):
            instance: Any = GlobalHydra.instance().hydra
            path = instance.config_loader.get_search_path()
            if self.extra_folder:
                path.prepend("command-line", f"file://{self.extra_folder}", SearchPathQuery(provider="schema"))
            instance.config_loader = Loader(path)
            yield instance

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        return hydra.compose(self.name, overrides=list(overrides), return_hydra_config=True)

    def _compose_valid(self, overrides: Sequence[str], loader: Loader) -> "Composed":
        """Compose one override at a time (0.1 s each), so that all problems are reported together.

        Groups come first, as Hydra applies them.
        """
        try:
            cfg = self._compose([])
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(in_one_line(error)) from error
        accepted: list[str] = []
        problems: list[str] = []
        groups_chosen = True
        for override in sorted(overrides, key=_is_value):
            try:
                cfg = self._compose([*accepted, override])
                accepted.append(override)
            except ConfigError as error:
                problems += error.problems
            except Exception as error:
                problems.append(explain(error, override, cfg))
                groups_chosen &= not isinstance(error, MissingConfigException | YAMLError)
        return Composed(cfg, loader, tuple(problems), groups_chosen)


@dataclass(frozen=True)
class Composed:
    """Configuration as Hydra composed it, with a line in `problems` for each override that was refused."""

    cfg: DictConfig
    loader: Loader
    problems: tuple[str, ...] = ()
    groups_chosen: bool = True

    def checked(self, check: Check, ranks: Callable[[Mapping[str, Any]], int], attempt: int = 0) -> LaunchContext:
        """Return the context of the run. Raise ConfigError with the problems of Hydra, OmegaConf and `check` together.

        `ranks` returns the world size that a configuration will have.
        """
        problems = list(self.problems)
        if self.groups_chosen:  # else the problems that follow from a wrong choice would hide it
            try:
                context = self._context(ranks, attempt)
                check(context)
            except ConfigError as error:
                problems += error.problems
            except RefusedError as refusal:  # a checkpoint or data: keeps its kind, unless the command is wrong as well
                if not problems:
                    raise
                problems.append(str(refusal))
        if problems := problems or self.loader.directory_problems(self.cfg):
            raise ConfigError(problems)
        return context

    def _context(self, ranks: Callable[[Mapping[str, Any]], int], attempt: int) -> LaunchContext:
        if self.cfg.hydra.mode == RunMode.MULTIRUN and not os.environ.get(RUN_DIR):
            raise ConfigError("hydra.mode: found MULTIRUN in a config file; type -m as well")
        HydraConfig.instance().set_config(self.cfg)  # for ${hydra:…}
        remember(OmegaConf.to_container(self.without_hydra(), resolve=False))
        try:
            resolved = OmegaConf.to_container(self.without_hydra(), resolve=True, throw_on_missing=True)
            run_dir = Path(os.environ.get(RUN_DIR) or str(self.cfg.hydra.run.dir))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{error.full_key}: {in_one_line(error)}") from error
        assert isinstance(resolved, dict)
        cfg = {str(key): value for key, value in resolved.items()}
        remember(cfg)
        if holds_known_secret(os.path.relpath(run_dir)):
            raise ConfigError("hydra.run.dir: it holds a secret, which every listing would show; choose another name")
        return LaunchContext(
            cfg=cfg,
            choices=self._choices(),
            overrides=unresolved(self.cfg.hydra.overrides.task),
            run_dir=run_dir.absolute(),
            world_size=ranks(cfg),
            attempt=attempt,
        )

    def _choices(self) -> dict[str, str]:
        """Return the file chosen in each group, but for groups whose node names another class than the file.

        Such a group is labelled with that class: the file's label would be wrong.
        """
        choices = self.cfg.hydra.runtime.choices.items()
        chosen = {group: choice for group, choice in choices if choice and "/" not in group}
        named = {group: OmegaConf.select(self.cfg, f"{group}.name") for group in chosen}
        return {g: choice for g, choice in chosen.items() if self._class_in_file(g, choice) in ("", named[g])}

    def _class_in_file(self, group: str, choice: str) -> str:
        folders = [Path(source.path) for source in self.cfg.hydra.runtime.config_sources if source.schema == "file"]
        files = [folder / group / f"{choice}.yaml" for folder in folders]
        return next((class_in(file) for file in files if file.is_file()), "")

    def without_hydra(self) -> DictConfig:
        """Return the configuration without the node `hydra`."""
        return OmegaConf.masked_copy(self.cfg, [str(key) for key in self.cfg if key != "hydra"])

    def save(self, run_dir: Path) -> None:
        """Write `.hydra/` as `hydra.main` does: unresolved, so that it can be composed again. Secrets are left out."""
        task = OmegaConf.to_container(self.without_hydra(), resolve=False)
        node: Any = OmegaConf.to_container(self.cfg.hydra, resolve=False)
        overrides = node["overrides"]["task"]
        node["runtime"]["output_dir"] = str(run_dir)
        folder = run_dir / ".hydra"
        folder.mkdir(exist_ok=True)
        for name, content in (("config", task), ("hydra", {"hydra": node}), ("overrides", overrides)):
            write_atomically(folder / f"{name}.yaml", OmegaConf.to_yaml(redacted(content)))


def unresolved(overrides: Any) -> list[str]:
    """Return overrides as they were typed. Iterating over them would replace ${oc.env:HF_TOKEN} by its value."""
    plain: Any = OmegaConf.to_container(overrides, resolve=False)
    return list(plain)


_LIMIT_BYTES = 1 << 20


def redact_saved(run_dir: Path, sweep_dir: Path) -> None:
    """Write the files that Hydra saved for a sweep's job again, without the secrets that were typed."""
    places = [(run_dir, run_dir / ".hydra" / f"{name}.yaml") for name in ("config", "hydra", "overrides")]
    for below, file in [*places, (sweep_dir, sweep_dir / "multirun.yaml")]:
        with suppress(OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException):
            text = read_text(file, _LIMIT_BYTES, below=below)
            saved = OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False)
            if (clean := redacted(saved)) != saved:
                write_atomically(file, OmegaConf.to_yaml(clean))


def _is_value(override: str) -> bool:
    return "." in override.partition("=")[0]
