"""Made-up run directories for the tests of the report."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console

from ddp_agent.report.__main__ import main, print_result
from ddp_agent.report.comparison.comparability import check_comparable
from ddp_agent.report.comparison.compare import compare
from ddp_agent.report.comparison.result import Result
from ddp_agent.report.comparison.rows import rows_of
from ddp_agent.report.runs.run import find_runs
from ddp_agent.report.tables import tables

STEPS = (10, 20, 30)


# Drawing takes seconds; most tests of the command are about the steps before it.
WITHOUT_DRAWING = patch("ddp_agent.report.__main__.contents", lambda result: {"report.json": b"{}", "index.html": b""})
# Made-up accuracies of five seeds; the seeds differ more among one another than the modes within each.
ACCURACY = {
    "allreduce": (0.9012, 0.9187, 0.8954, 0.9101, 0.9043),
    "local_sgd": (0.9020, 0.9176, 0.8961, 0.9088, 0.9050),
    "diloco": (0.8913, 0.9099, 0.8851, 0.9017, 0.8930),
    "slowmo": (0.9064, 0.9231, 0.9010, 0.9149, 0.9098),
}


def make_run(
    path: Path,
    *,
    status: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    curve: Sequence[float | None] | None = None,
    periods: Sequence[int] = (),
    **changes: Any,
) -> Path:
    """Make a finished run that ends with `test_metric`. Keyword arguments change its summary; None removes a key.

    `curve` has the metric's values after STEPS, at 0.1 s and 100 kB per step. `config` changes .hydra/config.yaml.
    """
    summary = {
        "status": "finished", "dataset": "digits", "model": "mlp", "cadence": "fixed", "world_size": 2,
        "sync": "allreduce", "reducer": "dense", "seed": 0, "steps": STEPS[-1], "samples": 960,
        "metric_name": "accuracy", "test_metric": 0.9, "train_s": 3.0, "wire_bytes": 3_000_000, "syncs": 30,
        **changes,
    }  # fmt: skip
    seed, metric = summary["seed"], summary["test_metric"]
    hashes = {"init_sha256": f"init{seed}", "data_sha256": "data", "order_sha256": f"order{seed}"}
    summary = {key: value for key, value in (hashes | summary).items() if value is not None}
    (path / ".hydra").mkdir(parents=True)
    (path / "status.json").write_text(json.dumps(status or {"status": "finished"}))
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "metrics.jsonl").write_text(
        metrics(summary.get("metric_name", "accuracy"), curve or (0.5, 0.7, metric), periods)
    )
    (path / ".hydra" / "config.yaml").write_text(json.dumps({"seed": seed, **(config or {})}))
    (path / ".hydra" / "overrides.yaml").write_text(json.dumps([f"sync={summary['sync']}", f"seed={seed}"]))
    return path


def metrics(name: str, curve: Sequence[float | None], periods: Sequence[int] = ()) -> str:
    lines: list[dict[str, Any]] = [{"step": 5 + index, "period": period} for index, period in enumerate(periods)]
    lines += [
        {"step": step, f"test_{name}": value, "train_s": step / 10, "wire_bytes": 100_000 * step}
        for step, value in zip(STEPS, curve, strict=True)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def make_sweep(path: Path, metrics_by_mode: Mapping[str, Sequence[float]], **changes: Any) -> Path:
    """Make one run for each value; the index of the value is the seed."""
    values = [(mode, seed, value) for mode, row in metrics_by_mode.items() for seed, value in enumerate(row)]
    for job, (mode, seed, value) in enumerate(values):
        make_run(path / str(job), sync=mode, seed=seed, test_metric=value, **changes)
    return path


def result_of(*directories: Path, baseline: str | None = None, target: float | None = None) -> Result:
    runs = find_runs(directories)
    finished = [run for run in runs if not run.problem]
    check_comparable(finished)
    return compare(rows_of(finished), [run for run in runs if run.problem], baseline=baseline, target=target)


def printed(result: Result) -> str:
    """Return the terminal's text, without line breaks inside sentences."""
    file = io.StringIO()
    print_result(result, Console(file=file, width=140))
    return " ".join(file.getvalue().split())


def cells(result: Result, title: str) -> dict[str, dict[str, str]]:
    """Return the cells of a table, by row and column."""
    (table,) = [table for table in tables(result) if table.title.startswith(title)]
    names = [column.name for column in table.columns]
    return {row[0]: dict(zip(names, row, strict=True)) for row in table.rows}


def refusal(directory: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the command's refusal. It must leave every file as it was."""
    before = sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*"))
    assert main([str(directory), *options]) == 2
    assert sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*")) == before
    return capsys.readouterr().err
