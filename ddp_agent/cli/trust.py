"""Checks that a configuration of unknown origin names no code, stays small, and writes below the current directory.

Hydra builds launchers, sweepers, callbacks and log handlers that a configuration names, and a user may choose any file
of the folder. So every file is checked. The composed configuration is checked again with its interpolations resolved,
since `${oc.create:…}` makes nodes from text.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

TARGET = "_target_"
DEEPEST = 50
_CODE = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")  # parts of `hydra` that name classes
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_DIRECTORIES = {"run.dir": "the current one", "sweep.dir": "the current one", "sweep.subdir": "the sweep's"}

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where there is one: ten times as fast


def file_problems(folders: Iterable[Path]) -> list[str]:
    """Return one line per configuration file below `folders` that must not be used.

    A file that is no YAML passes: it is refused when it is chosen.
    """
    files = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    return [f"{file}: {problem}" for file in files if (problem := _problem_of(file))]


def _problem_of(file: Path) -> str:
    """Return why a file must not be used, or an empty string."""
    depth = 0
    try:
        for event in yaml.parse(file.read_bytes(), _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                return f"found values nested more than {DEEPEST} deep"
            if isinstance(event, yaml.AliasEvent):  # a few lines of them can stand for gigabytes
                return f"found the alias *{event.anchor}, expected an interpolation ${{…}}"
            if isinstance(event, yaml.ScalarEvent) and TARGET in event.value:
                return f"found {TARGET}, but objects are named by `name:` here"
    except (yaml.YAMLError, OSError, ValueError):
        return ""
    return ""


def hydra_problems(hydra: DictConfig) -> list[str]:
    """Return one line per problem of the composed node `hydra`."""
    return [*code_problems(hydra), *directory_problems(hydra)]


def code_problems(hydra: DictConfig) -> list[str]:
    """Return one line per place of the node `hydra` that names code other than Hydra's own plugins."""
    problems = [line for part in _CODE for line in _code(_resolved(hydra, part), f"hydra.{part}")]
    if OmegaConf.select(hydra, "sweeper.custom_search_space") is not None:
        problems.append("hydra.sweeper.custom_search_space: it names a function, but configurations name no code here")
    return problems


def _resolved(hydra: DictConfig, part: str) -> Any:
    node = OmegaConf.select(hydra, part)
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException:  # for example ${hydra.job.num}, before there is a job
        return OmegaConf.to_container(node, resolve=False)


def _code(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if _names_code(str(key), value):
                yield f"{path}.{key}: found {value!r}, which would be run; only Hydra's own plugins are named so"
            yield from _code(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from _code(item, f"{path}[{index}]")
    elif isinstance(node, str) and node.startswith(("ext://", "cfg://")) and node not in _STREAMS:
        yield f"{path}: found {node!r}, expected {' or '.join(_STREAMS)}"


def _names_code(key: str, value: Any) -> bool:
    if key == TARGET:
        return value not in _plugins()
    return key == "()" or (key == "class" and not str(value).startswith("logging."))


@functools.cache
def _plugins() -> frozenset[str]:
    """Return the classes that the configurations of Hydra and of its installed plugins name."""
    Plugins.instance()
    return frozenset(_targets(ConfigStore.instance().repo["hydra"]))


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _targets(getattr(value, "node", value))
    elif OmegaConf.is_config(node):
        plain: Any = OmegaConf.to_container(node, resolve=False)
        yield from _targets(plain)
    if isinstance(node, dict) and isinstance(node.get(TARGET), str):
        yield node[TARGET]


def directory_problems(hydra: DictConfig) -> list[str]:
    """Return one line per directory outside of the current one that was not typed: a file must not choose it."""
    overrides: Any = OmegaConf.to_container(hydra.overrides.hydra, resolve=False)  # as typed
    typed = " ".join(map(str, overrides))
    return [
        f"hydra.{key}: found {_text(hydra, key)}, expected a directory below {where}"
        for key, where in _DIRECTORIES.items()
        if f"hydra.{key}=" not in typed and not _inside(_text(hydra, key))
    ]


def _text(hydra: DictConfig, key: str) -> str:
    try:
        return str(OmegaConf.select(hydra, key))
    except OmegaConfBaseException:
        section, _, name = key.partition(".")
        plain: Any = OmegaConf.to_container(hydra[section], resolve=False)
        return str(plain[name])


def _inside(directory: str) -> bool:
    """Return True by the directory's name alone: a folder of outputs may be a link to a larger disk."""
    path = os.path.normpath(directory)
    return not os.path.isabs(path) and path.partition(os.sep)[0] != os.pardir
