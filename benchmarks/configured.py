"""The pieces that conf/ describes: a new mode or reducer is measured without a change here."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ddp_agent.cli.composition import Configs
from ddp_agent.config.registry import build
from ddp_agent.reducers import Reducer
from ddp_agent.sync import SyncStrategy

CONF = Path(__file__).parents[1] / "conf"


def reducers() -> dict[str, Reducer]:
    """Return one reducer per file of conf/reducer, with the values of the file."""
    return {name: _built("reducer", name) for name in _files("reducer")}


def modes(**values: Any) -> dict[str, SyncStrategy]:
    """Return one mode per file of conf/sync, with the values of the file except for `values`.

    A value is given to each mode that has a field of its name.
    """
    built: dict[str, SyncStrategy] = {name: _built("sync", name) for name in _files("sync")}
    return {name: _replaced(mode, values) for name, mode in built.items()}


def _replaced(mode: SyncStrategy, values: dict[str, Any]) -> SyncStrategy:
    own = {field.name for field in fields(mode) if field.init}
    return replace(mode, **{key: value for key, value in values.items() if key in own})


def _files(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def _built(group: str, name: str) -> Any:
    composed = Configs(folder=CONF, name="config").compose([f"{group}={name}"])
    context = composed.checked(lambda context: None, lambda cfg: 1)
    return build(group, context.cfg[group])
