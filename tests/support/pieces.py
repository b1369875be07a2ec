"""Every sync mode and reducer that conf/ names, small enough for tests: a new one is tested by being there."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

from configs import files, node

from ddp_agent.config.fields import coerce, parameters
from ddp_agent.config.registry import locate
from ddp_agent.reducers import Reducer
from ddp_agent.sync import SyncStrategy

# With these a period is four steps, and ten steps meet all that a mode does.
SMALL: dict[str, dict[str, Any]] = {
    "sync": {"period": 4, "global_period": 4, "node_period": 2, "switch_step": 2, "delay": 1},
    "reducer": {"block": 8, "ratio": 0.3, "rank": 1, "min_compression": 0.0},
}


def small_values(group: str, name: str) -> dict[str, Any]:
    """The values of a config file, those that have a small one replaced by it."""
    values = node(group, name)
    small = {key: value for key, value in SMALL[group].items() if key in values}
    stable = {"outer_lr": 0.4} if values.get("combine") == "sum" else {}  # the sum over three ranks
    return values | small | stable


def _make(group: str, name: str, **changes: Any) -> Any:
    values = small_values(group, name)
    target = locate(group, values.pop("name"))
    accepted = parameters(target)
    return target(**{key: coerce(value, accepted[key].annotation) for key, value in values.items()} | changes)


MODES: Mapping[str, Callable[..., SyncStrategy]] = {name: partial(_make, "sync", name) for name in files("sync")}
REDUCERS: Mapping[str, Callable[..., Reducer]] = {name: partial(_make, "reducer", name) for name in files("reducer")}


def choices(piece: Any, key: str) -> tuple[str, ...]:
    """What a hyperparameter of a piece may be; empty when it has none of this name."""
    accepted = parameters(type(piece))
    return get_args(accepted[key].annotation) if key in accepted else ()
