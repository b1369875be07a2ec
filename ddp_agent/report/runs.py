"""Run directories as they were left: finished, failed, or killed halfway through a line."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What makes runs of one seed comparable: the same weights at the start, data, and order of samples.
HASHES = ("init_sha256", "data_sha256", "order_sha256")
# What a row of the table stands for; its runs differ in the seed.
SETTING = ("dataset", "model", "world_size", "sync", "reducer", "period")


class ReportError(Exception):
    """Why nothing can be reported, in words for the person who asked."""


@dataclass(frozen=True)
class Run:
    """With a `problem`, the reason it cannot be tabulated, `summary` is empty."""

    path: Path
    summary: dict[str, Any]
    problem: str | None = None

    @property
    def metric(self) -> str:
        return f"test_{self.summary['metric_name']}"

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl with a value on every axis, which one that was cut short has not."""
        needed = {"step", "train_s", "payload_bytes", self.metric}
        records = map(_parsed, _text(self.path / "metrics.jsonl").splitlines())
        return [record for record in records if needed <= record.keys() and record[self.metric] is not None]


@dataclass(frozen=True)
class Row:
    """Runs of one setting. `name` tells it from others that differ in what no summary says."""

    setting: dict[str, Any]
    runs: list[Run]
    name: str | None = None

    @property
    def label(self) -> str:
        details = [
            self.setting["reducer"],
            self.setting["period"] and f"period {self.setting['period']}",
            self.name,
        ]
        return f"{self.setting['sync']} ({', '.join(str(detail) for detail in details if detail)})"


def find_runs(directories: Iterable[Path]) -> list[Run]:
    """Raises ReportError when a directory is missing or holds no runs."""
    found: dict[Path, Run] = {}
    for directory in directories:
        if not directory.is_dir():
            raise ReportError(f"{directory}: no such directory")
        runs = {path.resolve(): _read(path) for path in _run_directories(directory)}
        if not runs:
            raise ReportError(f"{directory}: no runs in it (a run has a summary.json or a status.json)")
        found.update(runs)
    return list(found.values())


def _run_directories(top: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(top):
        folders.sort()
        if {"summary.json", "status.json"} & set(files):
            folders.clear()
            yield Path(name)


def _read(path: Path) -> Run:
    status, summary = _parsed(_text(path / "status.json")), _parsed(_text(path / "summary.json"))
    state = status.get("status", summary.get("status"))
    if state != "finished":
        details = [f"{key} {status[key]}" for key in ("rank", "step", "reason") if status.get(key) is not None]
        return Run(path, {}, ", ".join([str(state or "no readable status"), *details]))
    missing = [key for key in ("sync", "seed", "metric_name", "test_metric") if summary.get(key) is None]
    if missing:
        return Run(path, {}, f"finished, but its summary.json is damaged or lacks {', '.join(missing)}")
    return Run(path, summary)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def check_comparable(runs: Sequence[Run]) -> None:
    """Raises ReportError with every key in which runs differ that must agree, and which run has what."""
    problems = _differences("metric_name", runs, "")
    for seed in sorted({str(run.summary["seed"]) for run in runs}):
        same_seed = [run for run in runs if str(run.summary["seed"]) == seed]
        for key in HASHES:
            problems += _differences(key, same_seed, f" of seed {seed}")
    if problems:
        raise ReportError("\n".join(problems))


def _differences(key: str, runs: Sequence[Run], which: str) -> list[str]:
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for run in runs:
        paths[str(run.summary.get(key))[:12]].append(str(run.path))
    if len(paths) == 1:
        return []
    lines = [f"  {value:12}  {', '.join(names)}" for value, names in paths.items()]
    return [f"{key} differs, so these runs{which} cannot be compared:", *lines]


def rows(runs: Iterable[Run]) -> list[Row]:
    groups: defaultdict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (str(run.summary["seed"]), run.path)):
        groups[tuple(run.summary.get(key) for key in SETTING)].append(run)
    return [row for setting in sorted(groups, key=str) for row in _rows_of(setting, groups[setting])]


def _rows_of(setting: tuple[Any, ...], runs: list[Run]) -> list[Row]:
    """A seed that occurs twice was run with two configurations: a mean over them would mean nothing."""
    named = dict(zip(SETTING, setting, strict=True))
    if max(Counter(str(run.summary["seed"]) for run in runs).values()) == 1:
        return [Row(named, runs)]
    return [Row(named, [run], run.path.name) for run in runs]
