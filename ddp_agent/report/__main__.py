"""Command `python -m ddp_agent.report <sweep or run directories>`: quality and cost of each mode, with verdicts.

Prints the tables and writes report/index.html, report.json and the figures, by default into the first directory.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ddp_agent.config.untrusted import plain
from ddp_agent.outputs.streams import run_command
from ddp_agent.report.comparison.comparability import check_comparable
from ddp_agent.report.comparison.compare import compare
from ddp_agent.report.comparison.result import Result
from ddp_agent.report.comparison.rows import rows_of
from ddp_agent.report.comparison.sentences import answer, notes
from ddp_agent.report.formatting import finite
from ddp_agent.report.output_folder import INDEX, write
from ddp_agent.report.report_json import report_json
from ddp_agent.report.runs.run import ReportError, find_runs
from ddp_agent.report.tables import tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit code: 2 if it refused."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    output = options.output or options.directories[0] / "report"
    try:
        if output.is_symlink() and not options.output:
            raise ReportError(f"{output}: is a link, expected a folder of a report; --output chooses another directory")
        result = _compare(options.directories, options.baseline, options.target, console)
        print_result(result, console)
        write(output, contents(result))
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    _print_line(console, f"report: {output / 'index.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ddp_agent.report", description="Compares finished runs.")
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="runs, or sweeps of runs")
    parser.add_argument("--baseline", help="mode or row that the others are compared to; default: allreduce")
    parser.add_argument("--target", type=finite, help="test metric to be reached; default: the runs' own")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: report/ in the first directory")
    return parser


def _compare(directories: Sequence[Path], baseline: str | None, target: float | None, console: Console) -> Result:
    """Compare the runs and name the unusable ones. Raises ReportError if nothing is left, or if it would be unfair."""
    runs = find_runs(directories)
    finished, failed = [run for run in runs if not run.problem], [run for run in runs if run.problem]
    for run in failed:
        command = f" ({run.overrides})" if run.overrides else ""
        _print_line(console, f"not in the tables: {run.path}: {run.problem}{command}")
    if not finished:
        raise ReportError("no finished run to report")
    check_comparable(finished)
    return compare(rows_of(finished), failed, baseline=baseline, target=target)


def print_result(result: Result, console: Console) -> None:
    """Print the tables, the answer and the notes."""
    for table in tables(result):
        console.print(table.for_terminal())
    for paragraph in [*answer(result), *notes(result)]:
        console.print(plain(paragraph), markup=False, highlight=False)


def _print_line(console: Console, line: str) -> None:
    """Print literally and without wrapping."""
    console.print(plain(line), soft_wrap=True, markup=False, highlight=False)


def contents(result: Result) -> dict[str, bytes]:
    """Return the report's files by name."""
    # Imported here: Matplotlib takes a second, and the tables should be printed before that.
    from ddp_agent.report.figures.charts import charts
    from ddp_agent.report.figures.render import files_of
    from ddp_agent.report.page.page import page

    drawn = charts(result)
    figures = {name: content for chart in drawn for name, content in files_of(chart).items()}
    beside = [INDEX, *figures]
    return {
        INDEX: report_json(result, [*beside, "index.html"]).encode(),
        "index.html": page(result, drawn, beside).encode(),
        **figures,
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
