"""python -m ddp_agent.report <run or sweep directories>: a table, and report/curves.png in the first."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ddp_agent.report.runs import ReportError, check_comparable, find_runs, rows
from ddp_agent.report.table import comparison


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ddp_agent.report", description="Compares finished runs.")
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="runs, or sweeps of runs")
    directories = parser.parse_args(arguments).directories
    try:
        report(directories, Console(width=None if sys.stdout.isatty() else 140))
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def report(directories: Sequence[Path], console: Console) -> None:
    """Raises ReportError when there is nothing to compare, or when the comparison would be unfair."""
    runs = find_runs(directories)
    finished = [run for run in runs if run.problem is None]
    for run in runs:
        if run.problem is not None:
            console.print(f"not in the table: {run.path}: {run.problem}", soft_wrap=True, markup=False)
    if not finished:
        raise ReportError("no finished run to report")
    check_comparable(finished)
    console.print(comparison(rows(finished)))

    from ddp_agent.report.figure import draw  # matplotlib takes a second to import: the table comes first

    path = directories[0] / "report" / "curves.png"
    try:
        draw(rows(finished), path)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written ({error.strerror})") from error
    console.print(f"curves: {path}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
