"""Checks of the composed node `hydra`: it names no code but plugins, and a file chooses no directory outside.

The values that files may set are checked before (`trust`). What is left was typed, or is an interpolation. So the
composed node is checked as a whole, with its interpolations resolved: `${oc.create:…}` makes nodes from text.
"""

import copy
import functools
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from ddp_agent.cli.trust import TARGET

_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_OWN_FOLDERS = ("outputs", "multirun")  # of the default directories; each may be a link to a larger disk
_FILLED_BY_HYDRA = ("overrides", "runtime")


def code_problems(hydra: DictConfig) -> list[str]:
    """Return one line per place of the node `hydra` that names code other than Hydra's own plugins."""
    parts = [str(part) for part in hydra if part not in _FILLED_BY_HYDRA]
    problems = [line for part in parts for line in _code(_resolved(hydra, part), f"hydra.{part}")]
    if OmegaConf.select(hydra, "sweeper.custom_search_space") is not None:
        problems.append("hydra.sweeper.custom_search_space: it names a function, but configurations name no code here")
    return problems


def _resolved(hydra: DictConfig, part: str) -> Any:
    try:
        node = OmegaConf.select(hydra, part)
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException:  # for example ${hydra.job.num}, before there is a job
        plain: Any = OmegaConf.to_container(hydra, resolve=False)
        return plain[part]


def _code(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if _names_code(str(key), value, path):
                yield f"{path}.{key}: found {value!r}, which would be run; only Hydra's own plugins are named so"
            yield from _code(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from _code(item, f"{path}[{index}]")
    elif isinstance(node, str) and node.startswith(("ext://", "cfg://")) and node not in _STREAMS:
        yield f"{path}: found {node!r}, expected {' or '.join(_STREAMS)}"


def _names_code(key: str, value: Any, path: str) -> bool:
    if key == TARGET:
        return value not in _plugins()
    in_log = path.startswith(("hydra.job_logging", "hydra.hydra_logging"))
    return key == "()" or (in_log and key == "class" and not str(value).startswith("logging."))


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


def directory_problems(cfg: DictConfig, typed: Collection[str]) -> list[str]:
    """Return one line per directory that was not typed and lies outside of the current one, also through links."""
    with _first_job(cfg) as node:
        run_dir, sweep_dir, subdir = (_text(node, key) for key in ("run.dir", "sweep.dir", "sweep.subdir"))
    here = [os.getcwd(), *_OWN_FOLDERS]
    inside = {
        "run.dir": (_is_below(run_dir, here), "the current one"),
        "sweep.dir": (_is_below(sweep_dir, here), "the current one"),
        "sweep.subdir": (_is_below(os.path.join(sweep_dir, subdir), [sweep_dir]), "the sweep's"),
    }
    return [
        f"hydra.{key}: found {_written(cfg.hydra, key)}, expected a directory below {where}"
        for key, (is_inside, where) in inside.items()
        if f"hydra.{key}" not in typed and not is_inside
    ]


def subdirectory(cfg: DictConfig) -> str:
    """Return the name of a job's directory below the sweep's, with 0 for the number of the job."""
    with _first_job(cfg) as node:
        return _text(node, "sweep.subdir")


@contextmanager
def _first_job(cfg: DictConfig) -> Iterator[DictConfig]:
    """Yield a copy of the node `hydra` in which the number of the job is known, as it is when directories are made."""
    before, first = HydraConfig.instance().cfg, copy.deepcopy(cfg)
    with read_write(first.hydra), open_dict(first.hydra):
        first.hydra.job.update({"num": 0, "id": "0"})
    HydraConfig.instance().set_config(first)  # for ${hydra:…}
    try:
        yield first.hydra
    finally:
        HydraConfig.instance().cfg = before


def _text(hydra: DictConfig, key: str) -> str:
    """Return a value as text; as it is written where it cannot be resolved."""
    try:
        return str(OmegaConf.select(hydra, key))
    except OmegaConfBaseException:
        return _written(hydra, key)


def _written(hydra: DictConfig, key: str) -> str:
    section, _, name = key.partition(".")
    plain: Any = OmegaConf.to_container(hydra[section], resolve=False)
    return str(plain[name])


def _is_below(directory: str, parents: Collection[str]) -> bool:
    if "${" in directory or "\0" in directory:
        return False
    real = os.path.realpath(directory)
    folders = [os.path.realpath(parent) for parent in parents]
    return any(real != folder and os.path.commonpath([real, folder]) == folder for folder in folders)
