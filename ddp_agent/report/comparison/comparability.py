"""Check that runs may be compared: they may differ in how they were trained, and in nothing else."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from ddp_agent.config.untrusted import plain
from ddp_agent.report.runs.run import ReportError, Run

# Keys of summary.json that must agree among all runs, and among the runs of one seed. The order of the samples may
# differ between runs that were sliced differently.
OF_ALL = ("metric_name", "dataset", "model", "world_size", "samples", "data_sha256")
OF_A_SEED = ("init_sha256", "order_sha256")
# A sweep may differ in these keys on purpose.
_EXPERIMENTS = {"dataset", "model", "data_sha256", "init_sha256", "order_sha256"}
_NAMED = 6  # runs of one value that a message names
_TASK_KEYS = {"slicing.tasks", "slicing.deal"}  # they do not change which samples a rank gets


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise ReportError if runs differ where they must agree. The text names every such key, with the runs' values."""
    problems = {key: _problem(key, runs, _recorded(key)) for key in OF_ALL}
    if not problems["metric_name"]:
        problems["direction"] = _problem(
            "the direction of the metric", runs, lambda run: "up" if run.higher_is_better else "down"
        )
        problems["points"] = _problem("the schedule of evaluations", runs, _evaluation_steps)
    for key in OF_A_SEED:
        for seed, group in _groups_of_a_seed(key, runs):
            problems[key] = problems.get(key, []) + _problem(key, group, _recorded(key), f" of seed {seed}")
    text = [line for lines in problems.values() for line in lines]
    if not text:
        return
    if any(problems.get(key) for key in _EXPERIMENTS):
        text.append("A sweep over models, data or batch sizes is several comparisons: report each of them by itself.")
    raise ReportError("\n".join(text))


def _groups_of_a_seed(key: str, runs: Sequence[Run]) -> list[tuple[int, list[Run]]]:
    by_slicing = key == "order_sha256" and all(run.summary.get("slicing") for run in runs)
    groups: defaultdict[tuple[int, Hashable], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.seed, _slicing(run) if by_slicing else None].append(run)
    return sorted(((seed, group) for (seed, _), group in groups.items()), key=lambda pair: pair[0])


def _slicing(run: Run) -> Hashable:
    keys = {key: value for key, value in run.config.items() if key.startswith("slicing.") and key not in _TASK_KEYS}
    return plain(run.summary["slicing"]), *sorted(keys.items())


def _recorded(key: str) -> Callable[[Run], Any]:
    return lambda run: run.summary.get(key)


def _evaluation_steps(run: Run) -> str:
    steps = [str(record["step"]) for record in run.evaluations]
    return ", ".join(steps if len(steps) <= 6 else [*steps[:4], "…", steps[-1], f"({len(steps)} of them)"])


def _problem(name: str, runs: Sequence[Run], value_of: Callable[[Run], Any], which: str = "") -> list[str]:
    runs_by_value: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        value = value_of(run)
        runs_by_value["" if value is None else plain(value)].append(run)
    if len(runs_by_value) == 1 and "" not in runs_by_value:
        return []
    texts = {value: value[:12] if len(value) == 64 else value or "(not recorded)" for value in runs_by_value}
    width = max(map(len, texts.values()))
    lines = [
        f"  {texts[value]:{width}}  {', '.join(map(_job, same[:_NAMED]))}{_more(len(same) - _NAMED)}"
        for value, same in runs_by_value.items()
    ]
    if len(runs_by_value) == 1:
        return [f"{name} is not recorded, so nothing shows that these runs{which} can be compared:", *lines]
    lines += _explanation(list(runs_by_value.values()))
    return [f"{name} differs, so these runs{which} cannot be compared:", *lines]


def _job(run: Run) -> str:
    """Return a run's directory with what was typed for it."""
    return f"{run.path} ({run.overrides})" if run.overrides else str(run.path)


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _explanation(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name the config keys that divide the runs into the same groups: they are most likely the cause."""
    keys = sorted(set.intersection(*(set(run.config) for group in groups for run in group)))
    causes = [key for key in keys if key != "seed" and _divides(key, groups)]
    return [f"  and with it {', '.join(causes[:8])}"] if causes else []


def _divides(key: str, groups: Sequence[Sequence[Run]]) -> bool:
    values = [{run.config[key] for run in group} for group in groups]
    return all(len(value) == 1 for value in values) and len(set.union(*values)) == len(groups)
