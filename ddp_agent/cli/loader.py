"""Hydra's loader of configurations, which refuses what a file must not do, in every composition of every command.

`train.py`, each job of a sweep on whichever machine a launcher starts it, and `--cfg` compose through this class.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ddp_agent.cli import hydra_node, trust
from ddp_agent.cli.explanation import in_one_line
from ddp_agent.config.redaction import holds_known_secret, redacted_override
from ddp_agent.config.secret_text import names_secret
from ddp_agent.errors import ConfigError

MOST_BYTES = 255  # of a name, on most file systems
MOST_OF_OVERRIDES = 200  # the rest is for what else a directory's name has, such as the number of the job


class _Files(FileConfigSource):
    """Folder of configurations. A file that holds a bomb or names code is refused before it is loaded."""

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        if problem := trust.text_problem(file):
            raise ConfigError(f"{file}: {problem}")
        try:
            result = super().load_config(config_path)
        except (ValueError, RecursionError) as error:  # bytes that are no UTF-8, a number of thousands of digits
            raise ConfigError(f"{file}: {in_one_line(error)}") from error
        if not OmegaConf.is_dict(result.config):
            raise ConfigError(f"{file}: found a list, expected keys with values")
        return result


class Loader(ConfigLoaderImpl):
    """Loader that checks each file for itself, with the node that Hydra places it in, and then the whole."""

    def __init__(self, config_search_path: Any) -> None:
        super().__init__(config_search_path)
        self._typed: frozenset[str] = frozenset()
        self._parsed: list[Override] = []
        self._refused: list[str] = []

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *given: Any, **named: Any
    ) -> DictConfig:
        """Return the configuration. Raise ConfigError for a file that sets what it must not, and for code."""
        cfg = super().load_configuration(config_name, overrides, *given, **named)
        cfg.hydra.job.override_dirname = self._override_dirname(cfg.hydra.job.config.override_dirname)
        if problems := hydra_node.code_problems(cfg.hydra):
            raise ConfigError(problems)
        if RunMode.MULTIRUN in (*given, *named.values()):
            self._check_directories(cfg)
        return cfg

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the configuration of a job of a sweep. Raise ConfigError for a directory outside."""
        cfg = super().load_sweep_config(master_config, sweep_overrides)
        self._check_directories(cfg)
        subdir = hydra_node.subdirectory(cfg)
        if holds_known_secret(subdir):
            raise ConfigError(
                "hydra.sweep.subdir: it holds a secret, which every listing would show; name it otherwise"
            )
        if (fitting := _fitting(subdir, of=sweep_overrides)) != subdir:
            cfg.hydra.sweep.subdir = fitting
        return cfg

    def _override_dirname(self, options: Any) -> str:
        """Return the typed overrides as a part of a directory's name, without secrets, and short enough for one."""
        left_out = {*options.exclude_keys, *(each.key_or_group for each in self._parsed if each.is_hydra_override())}
        shown = [each for each in self._parsed if each.key_or_group not in left_out]
        lines = [redacted_override(str(each.input_line)) for each in shown if not names_secret(each.key_or_group)]
        name = options.item_sep.join(sorted(lines)).replace("=", options.kv_sep)
        return _fitting(name.replace("${", "{"), MOST_OF_OVERRIDES)  # else it would hold the value of ${oc.env:…}

    def directory_problems(self, cfg: DictConfig) -> list[str]:
        """Return one line per directory of the last configuration that a file chose outside of the current one."""
        return hydra_node.directory_problems(cfg, self._typed)

    def _check_directories(self, cfg: DictConfig) -> None:
        if problems := self.directory_problems(cfg):
            raise ConfigError(problems)

    def _process_config_searchpath(self, config_name: str | None, parsed_overrides: list[Override], repo: Any) -> None:
        _check_files(repo)
        self._parsed = parsed_overrides
        self._typed = frozenset(key for override in parsed_overrides for key in _typed_keys(override))
        primary = repo.load_config(config_name) if config_name else None
        if primary is not None and OmegaConf.is_dict(primary.config):
            # Before Hydra looks for hydra.searchpath in it: a path of the scheme pkg:// imports a package.
            content = OmegaConf.to_container(primary.config, resolve=False)
            if problems := trust.content_problems(content, self._typed):
                raise ConfigError([f"{config_name}.yaml: {problem}" for problem in problems])
        super()._process_config_searchpath(config_name, parsed_overrides, repo)
        _check_files(repo)

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        self._refused = []
        try:
            cfg = super()._compose_config_from_defaults_list(defaults, repo)
        except Exception:
            if self._refused:
                raise ConfigError(self._refused) from None
            raise
        if self._refused:
            raise ConfigError(self._refused)
        return cfg

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = super()._load_single_config(default, repo)
        config = str(default.config_path)
        if result.path.startswith("file://"):
            content = OmegaConf.to_container(result.config, resolve=False)
            file = f"{result.path.removeprefix('file://')}/{config}.yaml"
            self._refused += [f"{file}: {line}" for line in trust.content_problems(content, self._typed)]
        elif problem := trust.choice_problem(config, default.package or "", self._typed):
            self._refused.append(problem)
        return result


def _check_files(repo: Any) -> None:
    """Let the files of every folder of `repo` be checked when they are loaded.

    Folders are known by their scheme: Hydra imports the module of their class a second time when it looks for plugins,
    so that theirs may be another class than the one imported here.
    """
    sources = repo.get_sources()
    sources[:] = [
        _Files(source.provider, source.full_path()) if source.scheme() == _Files.scheme() else source
        for source in sources
    ]


def _typed_keys(override: Override) -> Iterator[str]:
    if not override.is_delete():
        yield from _leaves(override.key_or_group, None if override.is_sweep_override() else override.value())


def _leaves(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key


def _fitting(path: str, most: int = MOST_BYTES, of: Sequence[str] = ()) -> str:
    """Return `path` with each name cut to at most `most` bytes.

    A part of the sha256 of the path, and of the overrides that the path is `of`, keeps cut names apart.
    """

    def cut(name: str) -> str:
        raw = os.fsencode(name)
        if len(raw) <= most:
            return name
        digest = hashlib.sha256(os.fsencode("\n".join((path, *of)))).hexdigest()[:12]
        return f"{raw[: most - len(digest) - 1].decode(errors='ignore')}-{digest}"

    return "/".join(map(cut, path.split("/")))
