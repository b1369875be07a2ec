"""Run directories as they were left: finished, failed, or killed halfway through a line."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddp_agent.report.files import Record, flat, json_lines, json_object, number, plain, text_of, yaml_value

# Words in a metric's name by which more of it is worse or better, for runs that do not say so themselves.
_FALLING = {"loss", "error", "rmse", "mse", "mae", "perplexity", "nats", "bits", "bpc", "wer", "cer"}
_NEEDED = {"sync": str, "metric_name": str, "seed": int, "steps": int}


class ReportError(Exception):
    """Why nothing can be reported, in words for the person who asked."""


@dataclass(frozen=True)
class Run:
    """With a `problem`, the reason it cannot be compared, `summary` is empty.

    `name` tells the run from all others of a report; `config` is flat. `evaluations` and `periods` (steps and H) are
    what metrics.jsonl holds of them, `lines_cut` how many of its lines are not whole.
    """

    path: Path
    name: str
    summary: Mapping[str, Any]
    config: Mapping[str, str]
    asked: str
    evaluations: tuple[Record, ...] = ()
    periods: tuple[tuple[int, float], ...] = ()
    lines_cut: int = 0
    problem: str | None = None

    @property
    def seed(self) -> int:
        return int(self.summary["seed"])

    @property
    def mode(self) -> str:
        return plain(self.summary["sync"])

    @property
    def metric(self) -> str:
        return f"test_{self.summary['metric_name']}"

    @property
    def higher_is_better(self) -> bool:
        said = self.summary.get("higher_is_better")
        return said if isinstance(said, bool) else not _FALLING & set(re.split(r"[^a-z]+", self.metric.lower()))

    def value(self, key: str) -> float | None:
        return number(self.summary.get(key))


def find_runs(directories: Iterable[Path]) -> list[Run]:
    """In the order of their names, numbers by value. Raises ReportError for a directory that holds none."""
    found: dict[Path, Path] = {}
    for directory in directories:
        if not directory.is_dir():
            raise ReportError(f"{directory}: no such directory")
        paths = list(_run_directories(directory))
        if not paths:
            raise ReportError(f"{directory}: no runs in it (a run has a summary.json or a status.json)")
        for path in paths:
            found.setdefault(path.resolve(), path)
    names = distinguishing(list(found))
    return [replace(_read(path), name=plain(name)) for path, name in zip(found.values(), names, strict=True)]


def _run_directories(top: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(top):
        folders.sort(key=_by_number)
        if {"summary.json", "status.json"} & set(files):
            folders.clear()
            yield Path(name)


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def distinguishing(paths: list[Path]) -> list[str]:
    """The last parts of each path, as many as it takes for all to differ."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _read(path: Path) -> Run:
    tree, overrides = yaml_value(path / ".hydra" / "config.yaml"), yaml_value(path / ".hydra" / "overrides.yaml")
    run = Run(
        path=path,
        name="",
        summary={},
        config=dict(flat(tree)) if isinstance(tree, dict) else {},
        asked=plain(" ".join(map(str, overrides))) if isinstance(overrides, list) else "",
    )
    status, summary = json_object(text_of(path / "status.json")), json_object(text_of(path / "summary.json"))
    state = status.get("status", summary.get("status"))
    if state != "finished":
        details = [f"{key} {status[key]}" for key in ("rank", "step", "reason") if status.get(key) is not None]
        return replace(run, problem=plain(", ".join([str(state or "no readable status"), *details])))
    missing = [key for key, kind in _NEEDED.items() if not _is(summary.get(key), kind)]
    missing += ["test_metric"] if number(summary.get("test_metric")) is None else []
    if missing:
        return replace(run, problem=f"finished, but its summary.json is damaged or lacks {', '.join(missing)}")
    return _with_metrics(replace(run, summary=summary))


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _with_metrics(run: Run) -> Run:
    """An evaluation has the test metric as a key; its value is null when it was not finite."""
    records, lines_cut = json_lines(run.path / "metrics.jsonl")
    records = [record for record in records if _is(record.get("step"), int)]
    evaluations = {record["step"]: record for record in records if run.metric in record}
    last = run.summary["steps"]
    if last not in evaluations:
        problem = f"finished, but its metrics.jsonl is damaged or lacks the evaluation at step {last}"
        return replace(run, summary={}, problem=problem)
    periods = [(record["step"], period) for record in records if (period := number(record.get("period"))) is not None]
    return replace(
        run,
        evaluations=tuple(evaluations[step] for step in sorted(evaluations)),
        periods=tuple(sorted(periods)),
        lines_cut=lines_cut,
    )
