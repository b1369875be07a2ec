"""What a configuration may not do, whoever wrote it: name code to run, grow without bounds, write where it likes.

Hydra builds launchers, sweepers, callbacks and handlers of logs from what the configuration names, and any file of the
folder may be chosen. So all its files are looked through, and what was composed of them and of the command line once
more, with interpolations resolved, since `${oc.create:…}` makes nodes of text.
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
_CODE = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")  # of the node `hydra`: what it builds
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_DIRECTORIES = {"run.dir": "the current one", "sweep.dir": "the current one", "sweep.subdir": "the sweep's"}

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where there is one: ten times as fast


def file_problems(folders: Iterable[Path]) -> list[str]:
    """Of all configurations below; a file that is no YAML is told of when it is chosen."""
    files = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    return [f"{file}: {problem}" for file in files if (problem := _problem_of(file))]


def _problem_of(file: Path) -> str:
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
    """Of the composed node `hydra`."""
    return [*code_problems(hydra), *directory_problems(hydra)]


def code_problems(hydra: DictConfig) -> list[str]:
    found = [line for part in _CODE for line in _code(_resolved(hydra, part), f"hydra.{part}")]
    if OmegaConf.select(hydra, "sweeper.custom_search_space") is not None:
        found.append("hydra.sweeper.custom_search_space: it names a function, but configurations name no code here")
    return found


def _resolved(hydra: DictConfig, part: str) -> Any:
    node = OmegaConf.select(hydra, part)
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException:  # ${hydra.job.num}, say, which no job has yet
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
    """What Hydra and its installed plugins name in the configurations that they bring."""
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
    """A directory outside of the current one must have been typed: a file could choose any that the user may write."""
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
    """By its name: a folder of outputs may be a link to a larger disk."""
    path = os.path.normpath(directory)
    return not os.path.isabs(path) and path.partition(os.sep)[0] != os.pardir
