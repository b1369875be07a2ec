"""Rows of the comparison: one setting and its runs, one run per seed."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

from ddp_agent.config.untrusted import plain
from ddp_agent.report.runs.facts import GROUPS, differing_keys, settings_of
from ddp_agent.report.runs.run import ReportError, Run, shortest_names

_FOLDER = "run"  # the key of a setting that tells repeated runs apart by their folder


@dataclass(frozen=True)
class Row:
    """One setting. `settings` has dotted keys; `runs` has one run per seed, sorted by seed."""

    label: str
    settings: Mapping[str, str]
    runs: Sequence[Run]

    @property
    def mode(self) -> str:
        """The label of the sync mode."""
        return self.settings["sync"]

    @property
    def reducer(self) -> str | None:
        """The label of the reducer."""
        return self.settings.get("reducer")

    @property
    def period(self) -> str | None:
        """H as configured, or the range it went through where a cadence changed it."""
        periods = [period for run in self.runs for _, period in run.periods]
        if periods and min(periods) != max(periods):
            return f"{min(periods):g}–{max(periods):g}"
        if "sync.node_period" in self.settings:
            return f"{self.settings['sync.node_period']}, {self.settings.get('sync.global_period', '?')}"
        period = self.settings.get("sync.period", "null")
        return None if period == "null" else period

    @property
    def period_changes(self) -> bool:
        """True when H changed within one of the runs."""
        return any(len({period for _, period in run.periods}) > 1 for run in self.runs)


def rows_of(runs: Iterable[Run]) -> list[Row]:
    """Group runs by setting, in the order of the runs; rows of one mode are neighbours."""
    groups: defaultdict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(sorted(settings_of(run).items()))].append(run)
    parts = [part for group in groups.values() for part in _without_repetitions(group)]
    modes = list(dict.fromkeys(group[0].mode for _, group in parts))
    parts.sort(key=lambda part: modes.index(part[1][0].mode))
    settings = [settings_of(group[0]) | folder for folder, group in parts]
    sorted_runs = [sorted(group, key=lambda run: run.seed) for _, group in parts]
    return [Row(*row) for row in zip(_labels(settings), settings, sorted_runs, strict=True)]


def _without_repetitions(runs: list[Run]) -> Iterator[tuple[dict[str, str], list[Run]]]:
    """Split runs of one setting so that no part has a seed twice: by sweep if that is enough, else into single runs."""
    if _seeds_differ(runs):
        yield {}, runs
        return
    sweeps: defaultdict[Path, list[Run]] = defaultdict(list)
    for run in runs:
        sweeps[run.path.resolve().parent].append(run)
    if all(map(_seeds_differ, sweeps.values())):
        for name, group in zip(shortest_names(list(sweeps)), sweeps.values(), strict=True):
            yield {_FOLDER: plain(name)}, group
    else:
        yield from (({_FOLDER: run.name}, [run]) for run in runs)


def _seeds_differ(runs: Iterable[Run]) -> bool:
    return max(Counter(run.seed for run in runs).values()) == 1


def _labels(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Label each row by its mode and by as few settings as tell the mode's rows apart."""
    modes = [row["sync"] for row in settings]
    labels = {mode: iter(_labels_of_mode([row for row in settings if row["sync"] == mode])) for mode in set(modes)}
    return [next(labels[mode]) for mode in modes]


def _labels_of_mode(rows: Sequence[Mapping[str, str]]) -> list[str]:
    differing = differing_keys(rows)
    always = [key for key in differing if key in GROUPS]
    others = [key for key in differing if key not in GROUPS]
    few = (keys for count in range(4) for keys in combinations(others[:24], count))
    for keys in chain(few, [others]):
        labels = [_label(row, [*always, *keys]) for row in rows]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} #{number}" for number, label in enumerate(labels, start=1)]


def _label(row: Mapping[str, str], keys: Sequence[str]) -> str:
    short = Counter(key.rpartition(".")[2] for key in keys)
    parts = []
    for key in (key for key in keys if key in row):
        last = key.rpartition(".")[2]
        name = "H" if key == "sync.period" else last if short[last] == 1 else key
        parts.append(row[key] if key in GROUPS else f"({row[key]})" if key == _FOLDER else f"{name}={row[key]}")
    return " ".join([row["sync"], *parts])


def config_differences(rows: Sequence[Row]) -> dict[str, Mapping[str, str]]:
    """Return each key in which the rows differ, besides the mode, with the values by the rows' labels."""
    keys = [key for key in differing_keys([row.settings for row in rows]) if key != "sync"]
    return {key: {row.label: row.settings[key] for row in rows if key in row.settings} for key in keys}


def choose_baseline(rows: Sequence[Row], wanted: str | None) -> Row:
    """Return the row labelled `wanted`, or the only row of that mode.

    With None: allreduce, preferably uncompressed, or else the first row. Raises ReportError if no row or several match.
    """
    if wanted is None:
        allreduce = [row for row in rows if row.mode == "allreduce"]
        return next((row for row in allreduce if row.reducer in ("dense", None)), [*allreduce, *rows][0])
    matching = [row for row in rows if row.label == wanted] or [row for row in rows if row.mode == wanted]
    if len(matching) == 1:
        return matching[0]
    labels = ", ".join(repr(row.label) for row in matching or rows)
    reason = "several rows have" if matching else "no row has"
    raise ReportError(f"--baseline {wanted}: {reason} that name; choose one of {labels}")
