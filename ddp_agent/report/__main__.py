"""python -m ddp_agent.report <sweep or run directories>: which mode did how well, at what cost, and is it sure?

Prints the tables and writes report/index.html, report.json and the figures, by default into the first directory.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ddp_agent.report.answer import answer
from ddp_agent.report.compare import compare
from ddp_agent.report.fair import check_comparable
from ddp_agent.report.files import plain
from ddp_agent.report.folder import INDEX, write
from ddp_agent.report.notes import notes
from ddp_agent.report.result import Result
from ddp_agent.report.rows import rows_of
from ddp_agent.report.runs import ReportError, find_runs
from ddp_agent.report.sheets import sheets
from ddp_agent.report.table import table


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    output = asked.output or asked.directories[0] / "report"
    try:
        result = _compared(asked.directories, asked.baseline, asked.target, console)
        tell(result, console)
        write(output, contents(result))
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    _say(console, f"report: {output / 'index.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ddp_agent.report", description="Compares finished runs.")
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="runs, or sweeps of runs")
    parser.add_argument("--baseline", help="mode or row that the others are compared to; default: allreduce")
    parser.add_argument("--target", type=_finite, help="test metric to be reached; default: the runs' own")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: report/ in the first directory")
    return parser


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number")
    return value


def _compared(directories: Sequence[Path], baseline: str | None, target: float | None, console: Console) -> Result:
    """Raises ReportError when there is nothing to compare, or when the comparison would be unfair."""
    runs = find_runs(directories)
    finished, failed = [run for run in runs if not run.problem], [run for run in runs if run.problem]
    for run in failed:
        _say(console, f"not in the tables: {run.path}: {run.problem}{f' ({run.asked})' if run.asked else ''}")
    if not finished:
        raise ReportError("no finished run to report")
    check_comparable(finished)
    return compare(rows_of(finished), failed, baseline=baseline, target=target)


def tell(result: Result, console: Console) -> None:
    for sheet in sheets(result):
        console.print(table(sheet))
    for paragraph in [*answer(result), *notes(result)]:
        console.print(plain(paragraph), markup=False, highlight=False)


def _say(console: Console, line: str) -> None:
    """In one line, however long, and with nothing in it taken for markup."""
    console.print(plain(line), soft_wrap=True, markup=False, highlight=False)


def contents(result: Result) -> dict[str, bytes]:
    """The report's files by name. Matplotlib takes a second to import: the tables come first."""
    from ddp_agent.report.document import document
    from ddp_agent.report.figures import charts, files_of
    from ddp_agent.report.page import page

    drawn = charts(result)
    figures = {name: content for chart in drawn for name, content in files_of(chart).items()}
    beside = [INDEX, *figures]
    return {
        INDEX: document(result, [*beside, "index.html"]).encode(),
        "index.html": page(result, drawn, beside).encode(),
        **figures,
    }


if __name__ == "__main__":
    sys.exit(main())
