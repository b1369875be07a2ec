"""Which runs may stand beside each other: those that differ in how they were trained, and in nothing else."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from ddp_agent.report.files import plain
from ddp_agent.report.runs import ReportError, Run

# What all runs have in common, and what those of one seed have: the same weights at the start, and the same order
# unless they were told to slice the data in another way.
OF_ALL = ("metric_name", "dataset", "model", "world_size", "samples", "data_sha256")
OF_A_SEED = ("init_sha256", "order_sha256")
# In these a sweep may differ on purpose.
_EXPERIMENTS = {"dataset", "model", "data_sha256", "init_sha256", "order_sha256"}
_OF_TASKS = {"slicing.tasks", "slicing.deal"}  # which say nothing of samples


def check_comparable(runs: Sequence[Run]) -> None:
    """Raises ReportError with every key in which runs differ that must agree, and which run has what."""
    problems: dict[str, list[str]] = {}
    for key in OF_ALL:
        problems[key] = _problem(key, runs, _recorded(key))
    if not problems["metric_name"]:
        problems["direction"] = _problem("the direction of the metric", runs, _direction)
        problems["points"] = _problem("the schedule of evaluations", runs, _points)
    for key in OF_A_SEED:
        for seed, same in _of_a_seed(key, runs):
            problems[key] = problems.get(key, []) + _problem(key, same, _recorded(key), f" of seed {seed}")
    found = {key: lines for key, lines in problems.items() if lines}
    if not found:
        return
    text = [line for lines in found.values() for line in lines]
    if _EXPERIMENTS & set(found):
        text.append("A sweep over models, data or batch sizes is several comparisons: report each of them by itself.")
    raise ReportError("\n".join(text))


def _of_a_seed(key: str, runs: Sequence[Run]) -> list[tuple[int, list[Run]]]:
    sliced = key == "order_sha256" and all(run.summary.get("slicing") for run in runs)
    groups: defaultdict[tuple[int, Hashable], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.seed, _slicing(run) if sliced else None].append(run)
    return sorted(((seed, same) for (seed, _), same in groups.items()), key=lambda group: group[0])


def _slicing(run: Run) -> Hashable:
    chosen = {key: value for key, value in run.config.items() if key.startswith("slicing.") and key not in _OF_TASKS}
    return plain(run.summary["slicing"]), *sorted(chosen.items())


def _recorded(key: str) -> Callable[[Run], Any]:
    return lambda run: run.summary.get(key)


def _direction(run: Run) -> str:
    return "up" if run.higher_is_better else "down"


def _points(run: Run) -> str:
    steps = [str(record["step"]) for record in run.evaluations]
    return ", ".join(steps if len(steps) <= 6 else [*steps[:4], "…", steps[-1], f"({len(steps)} of them)"])


def _problem(name: str, runs: Sequence[Run], value_of: Callable[[Run], Any], which: str = "") -> list[str]:
    having: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        value = value_of(run)
        having["" if value is None else plain(value)].append(run)
    if len(having) == 1 and "" not in having:
        return []
    if len(having) == 1:
        return [f"{name} is not recorded, so nothing shows that these runs{which} can be compared:", *_lines(having)]
    return [f"{name} differs, so these runs{which} cannot be compared:", *_lines(having), *_explained(having.values())]


def _lines(having: dict[str, list[Run]]) -> list[str]:
    shown = {value: value[:12] if len(value) == 64 else value or "(not recorded)" for value in having}
    width = max(map(len, shown.values()))
    return [f"  {shown[value]:{width}}  {', '.join(str(run.path) for run in runs)}" for value, runs in having.items()]


def _explained(groups: Iterable[Sequence[Run]]) -> list[str]:
    """The config keys that divide the runs in the same way: most likely why they differ."""
    sides = list(groups)
    keys = sorted(set.intersection(*(set(run.config) for side in sides for run in side)))
    found = [key for key in keys if key != "seed" and _divides(key, sides)]
    return [f"  and with it {', '.join(found[:8])}"] if found else []


def _divides(key: str, sides: Sequence[Sequence[Run]]) -> bool:
    values = [{run.config[key] for run in side} for side in sides]
    return all(len(value) == 1 for value in values) and len(set.union(*values)) == len(sides)
