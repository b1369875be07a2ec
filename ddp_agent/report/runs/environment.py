"""Facts that runs recorded about their task and their machine."""

from collections import defaultdict
from collections.abc import Sequence

from ddp_agent.report.runs.files import one_line
from ddp_agent.report.runs.run import Run

NOT_RECORDED = "not recorded"
_TASK = ("dataset", "model", "params", "world_size", "nodes", "samples", "steps")
_MACHINE = (
    "device", "cpus", "platform", "python_version", "torch_version", "commit", "link_rate_bits_per_s",
)  # fmt: skip


def shared(runs: Sequence[Run]) -> dict[str, str]:
    """Return the facts about the task that are equal in all runs."""
    return {key: next(iter(values)) for key, values in _values(runs, _TASK).items() if len(values) == 1}


def environment(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Return the facts about the machines: for each key its values, for each value the names of its runs."""
    return _values(runs, _MACHINE)


def _values(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    names_by_key: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        names: defaultdict[str, list[str]] = defaultdict(list)
        for run in runs:
            value = run.summary.get(key)
            names[NOT_RECORDED if value is None else one_line(value)].append(run.name)
        if set(names) != {NOT_RECORDED}:
            names_by_key[key] = dict(names)
    return names_by_key
