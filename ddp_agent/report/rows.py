"""A row is what one setting did over its seeds: runs that agree in everything else."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

from ddp_agent.report.files import plain
from ddp_agent.report.runs import ReportError, Run, distinguishing

# What does not change what is trained, or is checked to be equal (budget and evaluation points).
_NOT_A_SETTING = {
    "seed", "epochs", "max_steps", "eval_every", "evaluate_own", "log_every", "consensus_every", "consensus_per_layer",
    "profile_steps", "target", "checkpoint_every", "keep_checkpoints", "resume", "run_name", "data_root",
    "nproc_per_node", "timeout_s", "trusted_packages",
}  # fmt: skip
_GROUPS = ("reducer", "cadence", "slicing", "model", "dataset")  # summaries call these by the names of their files
_PLACE = "run"  # what tells runs apart that agree in all settings


@dataclass(frozen=True)
class Row:
    """`settings` are flat; `runs` are in the order of their seeds, one of each."""

    label: str
    settings: Mapping[str, str]
    runs: Sequence[Run]

    @property
    def mode(self) -> str:
        return self.settings["sync"]

    @property
    def reducer(self) -> str | None:
        return self.settings.get("reducer")

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def period(self) -> str | None:
        """H as configured, and what it became where a cadence changed it."""
        periods = [period for run in self.runs for _, period in run.periods]
        if periods and min(periods) != max(periods):
            return f"{min(periods):g}–{max(periods):g}"
        if "sync.node_period" in self.settings:
            return f"{self.settings['sync.node_period']}, {self.settings.get('sync.global_period', '?')}"
        period = self.settings.get("sync.period", "null")
        return None if period == "null" else period

    @property
    def period_changes(self) -> bool:
        return any(len({period for _, period in run.periods}) > 1 for run in self.runs)


def settings_of(run: Run) -> dict[str, str]:
    """From the run's config; without one, the little that its summary says, and that this is all."""
    named = {group: plain(value) for group in _GROUPS if (value := run.summary.get(group)) is not None}
    config = {
        key: plain(value)
        for key, value in run.config.items()
        if key not in _NOT_A_SETTING and not (key.endswith(".name") and key.removesuffix(".name") in {*named, "sync"})
    }
    if not run.config:
        config = {"config": "not recorded"}
        if (period := run.summary.get("period")) is not None:
            config["sync.period"] = plain(period)
    return {"sync": run.mode, **named, **config}


def rows_of(runs: Iterable[Run]) -> list[Row]:
    """In the order of the runs."""
    groups: defaultdict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(sorted(settings_of(run).items()))].append(run)
    found = [part for group in groups.values() for part in _without_twins(group)]
    modes = list(dict.fromkeys(group[0].mode for _, group in found))
    found.sort(key=lambda part: modes.index(part[1][0].mode))  # rows of one mode side by side
    settings = [settings_of(group[0]) | place for place, group in found]
    labels = _labels(settings)
    ordered = [sorted(group, key=lambda run: run.seed) for _, group in found]
    return [Row(*each) for each in zip(labels, settings, ordered, strict=True)]


def _without_twins(runs: list[Run]) -> Iterator[tuple[dict[str, str], list[Run]]]:
    """A seed that was run twice must not count twice. Two sweeps are told apart by their directories, else each run."""
    if _seeds_differ(runs):
        yield {}, runs
        return
    sweeps: defaultdict[Path, list[Run]] = defaultdict(list)
    for run in runs:
        sweeps[run.path.resolve().parent].append(run)
    if all(map(_seeds_differ, sweeps.values())):
        for name, group in zip(distinguishing(list(sweeps)), sweeps.values(), strict=True):
            yield {_PLACE: plain(name)}, group
    else:
        yield from (({_PLACE: run.name}, [run]) for run in runs)


def _seeds_differ(runs: Iterable[Run]) -> bool:
    return max(Counter(run.seed for run in runs).values()) == 1


def _labels(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The mode, and as few of the settings in which its rows differ as tell them apart."""
    labels = [row["sync"] for row in settings]
    for mode in {row["sync"] for row in settings}:
        places = [place for place, row in enumerate(settings) if row["sync"] == mode]
        for place, label in zip(places, _labels_of_mode([settings[place] for place in places]), strict=True):
            labels[place] = label
    return labels


def _labels_of_mode(rows: Sequence[Mapping[str, str]]) -> list[str]:
    differing = differing_keys(rows)
    always = [key for key in differing if key in _GROUPS]
    others = [key for key in differing if key not in _GROUPS]
    few = (chosen for count in range(4) for chosen in combinations(others[:24], count))
    for chosen in chain(few, [others]):
        labels = [_label(row, [*always, *chosen]) for row in rows]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} #{place}" for place, label in enumerate(labels, start=1)]


def differing_keys(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """What people look for first comes first."""
    keys = {key for row in rows for key in row if len({other.get(key) for other in rows}) > 1}
    return sorted(keys, key=lambda key: (key not in _GROUPS, key != "sync.period", not key.startswith("sync."), key))


def _label(row: Mapping[str, str], keys: Sequence[str]) -> str:
    short = Counter(key.rpartition(".")[2] for key in keys)
    parts = []
    for key in (key for key in keys if key in row):
        last = key.rpartition(".")[2]
        name = "H" if key == "sync.period" else last if short[last] == 1 else key
        parts.append(row[key] if key in _GROUPS else f"({row[key]})" if key == _PLACE else f"{name}={row[key]}")
    return " ".join([row["sync"], *parts])


def choose_baseline(rows: Sequence[Row], asked: str | None) -> Row:
    """A label or, where one row alone has it, a mode. Not asked: allreduce without compression, or else the first."""
    if asked is None:
        exact = [row for row in rows if row.mode == "allreduce"]
        return next((row for row in exact if row.reducer in ("dense", None)), [*exact, *rows][0])
    found = [row for row in rows if row.label == asked] or [row for row in rows if row.mode == asked]
    if len(found) == 1:
        return found[0]
    labels, said = ", ".join(repr(row.label) for row in found or rows), "several rows have" if found else "no row has"
    raise ReportError(f"--baseline {asked}: {said} that name; choose one of {labels}")
