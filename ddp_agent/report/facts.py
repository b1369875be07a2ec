"""What the runs of a report share, and in what they differ besides how well they did."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ddp_agent.report.files import plain
from ddp_agent.report.rows import Row, differing_keys
from ddp_agent.report.runs import Run

_SHARED = ("dataset", "model", "params", "world_size", "nodes", "samples", "steps")
_ENVIRONMENT = (
    "device", "cpus", "platform", "python_version", "torch_version", "commit", "link_rate_bits_per_s",
)  # fmt: skip


def shared(runs: Sequence[Run]) -> dict[str, str]:
    """What is the same in all of them."""
    return {key: next(iter(values)) for key, values in _values(runs, _SHARED).items() if len(values) == 1}


def environment(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Of each key the values, and of each value the runs."""
    return _values(runs, _ENVIRONMENT)


def _values(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        values: defaultdict[str, list[str]] = defaultdict(list)
        for run in runs:
            value = run.summary.get(key)
            values["not recorded" if value is None else plain(value)].append(run.name)
        if set(values) != {"not recorded"}:
            found[key] = dict(values)
    return found


def config_differences(rows: Sequence[Row]) -> dict[str, Mapping[str, str]]:
    """Of each key in which rows differ, what the rows have that have it; the mode itself is left out."""
    keys = [key for key in differing_keys([row.settings for row in rows]) if key != "sync"]
    return {key: {row.label: row.settings[key] for row in rows if key in row.settings} for key in keys}
