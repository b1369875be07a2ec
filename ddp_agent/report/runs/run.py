"""Run folders, whether the run finished, failed, or was killed in the middle of a line."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddp_agent.config.untrusted import UnusableFileError, number, plain, walk
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.report.runs.files import Record, flat, json_lines, json_object, text_of, yaml_value

# A metric is taken to be better when lower if its name has one of these words and the run does not say the direction.
_LOWER_IS_BETTER = {"loss", "error", "rmse", "mse", "mae", "perplexity", "nats", "bits", "bpc", "wer", "cer"}
_NEEDED = {"sync": str, "metric_name": str, "seed": int, "steps": int}


class ReportError(Exception):
    """Reason why nothing can be reported, in words for the user."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    `problem`, where there is one, says why the run cannot be compared; `summary` is then empty.
    `name` is unique among the runs of a report. `config` has dotted keys. `overrides` is the text of the command line.
    `evaluations` and `periods` (pairs of step and H) come from metrics.jsonl, which has `lines_cut` damaged lines.
    """

    path: Path
    name: str
    summary: Mapping[str, Any]
    config: Mapping[str, str]
    overrides: str
    evaluations: tuple[Record, ...] = ()
    periods: tuple[tuple[int, float], ...] = ()
    lines_cut: int = 0
    problem: str | None = None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.summary["seed"])

    @property
    def mode(self) -> str:
        """The label of the sync mode."""
        return plain(self.summary["sync"])

    @property
    def metric(self) -> str:
        """The key of the test metric in metrics.jsonl, such as test_accuracy."""
        return f"test_{self.summary['metric_name']}"

    @property
    def higher_is_better(self) -> bool:
        """The metric's direction: as recorded, or else guessed from the metric's name."""
        recorded = self.summary.get("higher_is_better")
        if isinstance(recorded, bool):
            return recorded
        return not _LOWER_IS_BETTER & set(re.split(r"[^a-z]+", self.metric.lower()))

    def value(self, key: str) -> float | None:
        """Return a number of the summary, or None if there is none under `key`."""
        return number(self.summary.get(key))

    def first_at(self, target: float) -> Record | None:
        """Return the first evaluation at or beyond `target`, or None. Nothing is extrapolated."""
        for record in self.evaluations:
            value = number(record.get(self.metric))
            if value is not None and (value >= target if self.higher_is_better else value <= target):
                return record
        return None


def find_runs(directories: Iterable[Path]) -> list[Run]:
    """Return every run below `directories` once, sorted by name with numbers by value.

    Raises ReportError for a directory that does not exist or holds no run.
    """
    paths: dict[Path, Path] = {}
    for directory in directories:
        if not directory.is_dir():
            raise ReportError(f"{directory}: no such directory")
        try:
            below = list(_run_folders(directory))
        except UnusableFileError as error:
            raise ReportError(str(error)) from error
        if not below:
            raise ReportError(f"{directory}: no runs in it (a run has a summary.json or a status.json)")
        for path in below:
            paths.setdefault(path.resolve(), path)
    names = shortest_names(list(paths))
    return [replace(_read(path), name=plain(name)) for path, name in zip(paths.values(), names, strict=True)]


def _run_folders(top: Path) -> Iterator[Path]:
    for folder, folders, files in walk(top):
        folders.sort(key=_by_number)
        if {"summary.json", "status.json"} & set(files):
            folders.clear()
            yield folder


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def shortest_names(paths: list[Path]) -> list[str]:
    """Return the ends of the paths, with as few parts as make all of them different."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _read(path: Path) -> Run:
    tree, overrides = (yaml_value(path / ".hydra" / f"{name}.yaml", below=path) for name in ("config", "overrides"))
    run = Run(
        path=path,
        name="",
        summary={},
        config=dict(flat(tree)) if isinstance(tree, dict) else {},
        overrides=plain(" ".join(map(str, overrides))) if isinstance(overrides, list) else "",
    )
    status, summary = RunFiles(path).state(), json_object(text_of(path / "summary.json", below=path))
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
    """Add the evaluations and periods of metrics.jsonl. A record with the test metric, even null, is an evaluation."""
    records, lines_cut = json_lines(run.path / "metrics.jsonl", below=run.path)
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
