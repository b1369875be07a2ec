"""The tables, as text: what the terminal shows and the page holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ddp_agent.report.interval import Estimate
from ddp_agent.report.result import Line, Reached, Result
from ddp_agent.report.shown import compact, count, metric_decimals, verdict, with_interval

NONE = "–"
Shown = Callable[[float], str]


@dataclass(frozen=True)
class Column:
    name: str
    cells: Sequence[str]
    numeric: bool = True


@dataclass(frozen=True)
class Sheet:
    """The first column names the rows."""

    title: str
    columns: Sequence[Column]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return list(zip(*(column.cells for column in self.columns), strict=True))


def sheets(result: Result) -> list[Sheet]:
    """Columns in which nothing is known are left out."""
    found = [_quality(result), *([_to_target(result)] if result.target is not None else []), _cost(result)]
    return [
        replace(sheet, columns=[column for column in sheet.columns if set(column.cells) != {NONE}]) for sheet in found
    ]


def _quality(result: Result) -> Sheet:
    decimals, lines = metric_decimals(result), result.lines
    return Sheet(
        "Quality",
        [
            _names(lines),
            Column("reducer", [line.row.reducer or NONE for line in lines], numeric=False),
            Column("H", [line.row.period or NONE for line in lines]),
            Column(f"{result.metric_name} {_arrow(result)}", [with_interval(line.metric, decimals) for line in lines]),
            Column(
                f"difference to {result.baseline.label}",
                [with_interval(line.difference, decimals, "+") if line.difference else NONE for line in lines],
            ),
            Column("verdict", [verdict(line) for line in lines], numeric=False),
        ],
    )


def _arrow(result: Result) -> str:
    return "↑" if result.higher_is_better else "↓"


def _to_target(result: Result) -> Sheet:
    def column(name: str, mean_of: Callable[[Reached], Estimate | None], shown: Shown = compact) -> Column:
        means = [mean_of(line.reached) if line.reached else None for line in result.lines]
        return Column(name, [_cell(mean, shown) for mean in means])

    return Sheet(
        f"Until {result.metric_name} {result.target:g}",
        [
            _names(result.lines),
            column("steps", lambda reached: reached.step, count),
            column("seconds", lambda reached: reached.train_s),
            column("MB sent", lambda reached: reached.wire_bytes, _megabytes),
            Column("reached by", [_reached(line.reached) for line in result.lines]),
        ],
    )


def _reached(reached: Reached | None) -> str:
    return f"{reached.runs} of {reached.of} seed{'s' * (reached.of != 1)}" if reached else NONE


def _cost(result: Result) -> Sheet:
    def column(name: str, key: str, shown: Shown = compact) -> Column:
        return Column(name, [_cell(line.costs[key], shown) for line in result.lines])

    return Sheet(
        "Cost",
        [
            _names(result.lines),
            column("MB sent", "wire_bytes", _megabytes),
            column("syncs", "syncs", count),
            column("training s", "train_s"),
            column("samples/s", "samples_per_s"),
            column("exposed comm. %", "exposed_comm_percent"),
            column("of which waiting %", "straggler_wait_percent"),
            column("consensus distance", "consensus_distance"),
            column("relative to ‖w‖", "consensus_relative"),
            column("peak memory MB", "peak_memory_bytes", _megabytes),
        ],
    )


def _names(lines: Sequence[Line]) -> Column:
    return Column("mode", [line.label for line in lines], numeric=False)


def _megabytes(count: float) -> str:
    return compact(count / 1e6)


def _cell(mean: Estimate | None, shown: Shown) -> str:
    return NONE if mean is None else shown(mean.mean)
