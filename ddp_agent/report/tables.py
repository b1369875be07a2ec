"""The tables of a comparison as text, for the terminal and the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from ddp_agent.report.comparison.intervals import Estimate
from ddp_agent.report.comparison.result import Line, Result
from ddp_agent.report.formatting import compact, counted, mean_count, with_interval

NONE = "–"


@dataclass(frozen=True)
class Column:
    """A column of cells below its name."""

    name: str
    cells: Sequence[str]
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table. Its first column names the rows."""

    title: str
    columns: Sequence[Column]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))

    def for_terminal(self) -> RichTable:
        """Return a table for a rich console, which shows every name literally."""
        table = RichTable(title=escape(self.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.title_style = "bold"
        for column in self.columns:
            table.add_column(escape(column.name), justify="right" if column.numeric else "left")
        for cells in self.rows:
            table.add_row(*map(escape, cells))
        return table


def tables(result: Result) -> list[Table]:
    """Return the tables of quality, way to the target (if there is one) and cost, without their empty columns."""
    all_columns = [_quality(result), *([_to_target(result)] if result.target is not None else []), _cost(result)]
    return [
        replace(table, columns=[column for column in table.columns if set(column.cells) != {NONE}])
        for table in all_columns
    ]


def _quality(result: Result) -> Table:
    decimals, lines = result.metric_decimals, result.lines
    arrow = "↑" if result.higher_is_better else "↓"
    return Table(
        "Quality",
        [
            _labels(lines),
            Column("reducer", [line.row.reducer or NONE for line in lines], numeric=False),
            Column("H", [line.row.period or NONE for line in lines]),
            Column(f"{result.metric_name} {arrow}", [with_interval(line.metric, decimals) for line in lines]),
            Column(
                f"difference to {result.baseline.label}",
                [with_interval(line.difference, decimals, "+") if line.difference else NONE for line in lines],
            ),
            Column("verdict", [line.verdict_with_reason for line in lines], numeric=False),
        ],
    )


def _to_target(result: Result) -> Table:
    reached = [line.reached for line in result.lines if line.reached]
    return Table(
        f"Until {result.metric_name} {result.target:g}",
        [
            _labels(result.lines),
            _means("steps", [each.step for each in reached], mean_count),
            _means("seconds", [each.train_s for each in reached]),
            _means("MB sent", [each.wire_bytes for each in reached], _megabytes),
            Column("reached by", [f"{each.runs} of {counted(each.of, 'seed')}" for each in reached]),
        ],
    )


def _cost(result: Result) -> Table:
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("MB sent", "wire_bytes", _megabytes),
        ("syncs", "syncs", mean_count),
        ("training s", "train_s", compact),
        ("samples/s", "samples_per_s", compact),
        ("exposed comm. %", "exposed_comm_percent", compact),
        ("of which waiting %", "straggler_wait_percent", compact),
        ("consensus distance", "consensus_distance", compact),
        ("relative to ‖w‖", "consensus_relative", compact),
        ("peak memory MB", "peak_memory_bytes", _megabytes),
    ]
    means = [_means(name, [line.costs[key] for line in result.lines], form) for name, key, form in columns]
    return Table("Cost", [_labels(result.lines), *means])


def _labels(lines: Sequence[Line]) -> Column:
    return Column("mode", [line.label for line in lines], numeric=False)


def _means(name: str, means: Sequence[Estimate | None], form: Callable[[float], str] = compact) -> Column:
    return Column(name, [NONE if mean is None else form(mean.mean) for mean in means])


def _megabytes(count: float) -> str:
    return compact(count / 1e6)
