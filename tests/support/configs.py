"""Configurations for tests: single files of conf/ as plain dicts, or composed as for a user."""

import copy
import functools
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ddp_agent.cli.composition import RUN_TIME, Configs, LaunchContext
from ddp_agent.errors import ConfigError
from ddp_agent.training.settings import Settings, parse

CONF = Path(__file__).parents[2] / "conf"


def files(group: str) -> list[str]:
    """Return the names of a group's files."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def groups() -> list[str]:
    return sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())


@functools.cache
def _read(group: str, name: str) -> Any:
    root: Any = OmegaConf.load(CONF / "config.yaml")
    common = root.get(group, {})  # values for every file of the group
    loaded = OmegaConf.merge(OmegaConf.load(CONF / group / f"{name}.yaml"), common)
    known = {group: loaded} | ({} if group == "schedule" else {"schedule": _read("schedule", "constant")})
    resolved: Any = OmegaConf.to_container(OmegaConf.create(known), resolve=True)
    return resolved[group]


def node(group: str, name: str, **values: Any) -> dict[str, Any]:
    """Return one file of a group, with some values replaced."""
    content: dict[str, Any] = copy.deepcopy(_read(group, name))
    return content | values


def settings(*overrides: str, world_size: int = 2) -> Settings:
    """Compose, resolve and check a configuration as a run does. Raises RefusedError."""
    parsed = []

    def check(context: LaunchContext) -> None:
        parsed.append(parse(context.cfg, choices=context.choices, world_size=context.world_size))

    with mock.patch.dict(os.environ, {RUN_TIME: "now"}):  # else all later runs of this process would get the same name
        Configs(folder=CONF, name="config").compose(overrides).checked(check, lambda _: world_size)
    return parsed[0]


@functools.cache
def _default() -> Any:
    return settings().cfg


def config(*typed: str, **chosen: str) -> dict[str, Any]:
    """Return the default configuration with other files `chosen` and `key=value` typed. Composing it takes 0.2 s."""
    cfg: dict[str, Any] = copy.deepcopy(_default())
    for group, name in chosen.items():
        cfg[group] = node(group, name)
    for override in OverridesParser.create().parse_overrides(list(typed)):
        *path, key = override.key_or_group.split(".")
        functools.reduce(dict.__getitem__, path, cfg)[key] = override.value()
    return cfg


def parsed(cfg: dict[str, Any], world_size: int = 2) -> Settings:
    return parse(cfg, choices={}, world_size=world_size)


def refusal(*typed: str, world_size: int = 2, **chosen: str) -> list[str]:
    """Return the problems of the default configuration after these changes."""
    with pytest.raises(ConfigError) as refused:
        parsed(config(*typed, **chosen), world_size)
    return refused.value.problems
