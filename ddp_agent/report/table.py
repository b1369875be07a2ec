"""One line a row: the mean over its seeds, and how much the seeds differ."""

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from rich.markup import escape
from rich.table import Table

from ddp_agent.report.runs import Row, Run


def metric_cell(runs: Sequence[Run]) -> str:
    """Mean ± sample standard deviation. One seed says nothing about the spread, so it gets none."""
    values = [float(run.summary["test_metric"]) for run in runs]
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread} (n={len(values)})"


def comparison(rows: Sequence[Row]) -> Table:
    """What all rows share stands above the table, not in it."""
    columns: dict[str, list[str]] = {
        "dataset": [_shown(row.setting["dataset"]) for row in rows],
        "model": [_shown(row.setting["model"]) for row in rows],
        "ranks": [_shown(row.setting["world_size"]) for row in rows],
        "run": [_shown(row.name) for row in rows],
    }
    shared = {name: cells[0] for name, cells in columns.items() if len(set(cells)) == 1}
    title = ", ".join(f"{name} {cell}" for name, cell in shared.items() if cell != "–")
    columns = {name: cells for name, cells in columns.items() if name not in shared}
    columns |= {
        "mode": [_shown(row.setting["sync"]) for row in rows],
        "reducer": [_shown(row.setting["reducer"]) for row in rows],
        "period": [_shown(row.setting["period"]) for row in rows],
        "seeds": [", ".join(str(run.summary["seed"]) for run in row.runs) for row in rows],
        rows[0].runs[0].metric: [metric_cell(row.runs) for row in rows],
        "train_s": [_mean_cell(row.runs, "train_s", "{:,.2f}".format) for row in rows],
        "payload MB": [_mean_cell(row.runs, "payload_bytes", lambda n: f"{n / 1e6:,.2f}") for row in rows],
        "syncs": [_mean_cell(row.runs, "syncs", "{:,.0f}".format) for row in rows],
    }
    table = Table(*columns, title=title)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    for column in table.columns[-3:]:
        column.justify = "right"
    return table


def _mean_cell(runs: Sequence[Run], key: str, shown: Callable[[float], str]) -> str:
    values: list[Any] = [run.summary.get(key) for run in runs]
    return "–" if None in values else shown(mean(values))


def _shown(value: Any) -> str:
    return "–" if value is None else escape(str(value))
