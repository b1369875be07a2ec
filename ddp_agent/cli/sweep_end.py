"""The end of a sweep: its jobs with their scores, its report, and the commands that show all of it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ddp_agent.cli import named_runs
from ddp_agent.cli.sweep_job import JOB_FILE
from ddp_agent.cli.sweep_record import DONE_BEFORE, FAILED, STARTED, SweepRecord
from ddp_agent.config.command_line import override, shell_word
from ddp_agent.config.untrusted import number, plain, read_json_object, walk
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.outputs.run_status import conclude

MOST_LISTED = 100
REPORT_TIMEOUT_S = 600.0
_LIMIT_BYTES = 64 << 20
_PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True)
class _Ended:
    """One job's place, what was typed for it, and how it ended."""

    number: str
    overrides: Sequence[str]
    run_dir: Path

    def line(self, common: Container[str]) -> str:
        """Return what tells this job from the others, for which `common` overrides do not serve."""
        typed = [override for override in self.overrides if override not in common]
        files = RunFiles(self.run_dir)
        state = plain(files.state().get("status") or "no status", 20)
        return f"  {self.number:>3}  {state:<10} {self._score(files):<18} {plain(shlex.join(typed))}".rstrip()

    def _score(self, files: RunFiles) -> str:
        try:
            summary = read_json_object(files.summary, _LIMIT_BYTES, below=files.path)
        except OSError:
            return ""
        metric = number(summary.get("test_metric"))
        return "" if metric is None else f"{plain(summary.get('metric_name'), 40)} {metric:.4g}"


def ended(record: SweepRecord, sweep_dir: Path | None, failure: str | None) -> int:
    """Print the jobs, write the report, and return the exit code. `failure`: the one that Hydra hands over, if any."""
    jobs = _jobs(record, sweep_dir)
    _list(jobs)
    if sweep_dir is not None:
        _show_report(jobs, sweep_dir)
    if failure is None:
        return 0
    messages = [str(event["text"]) for event in record.events(FAILED)]
    # Where jobs ran on other machines, nothing is known of the failures behind the first.
    print(
        f"\nfailed in this sweep: {len(messages) or 'at least'}", *(messages or [failure]), sep="\n  ", file=sys.stderr
    )
    _print_way_on(sweep_dir)
    return 1


def stopped(record: SweepRecord, sweep_dir: Path | None, signal_name: str) -> None:
    """Print the jobs of a sweep that a signal ends, and how to go on."""
    jobs = _jobs(record, sweep_dir)
    for job in jobs:  # of a launcher whose processes the signal has ended as well
        conclude(job.run_dir, f"{signal_name}: stopped before it could save")
    _list(jobs)
    _print_way_on(sweep_dir)


def _jobs(record: SweepRecord, sweep_dir: Path | None) -> list[_Ended]:
    """Return the jobs that were started, or else, where they ran on other machines, those of the directory."""
    found = {
        event["run_dir"]: _Ended(str(event["job"]), event["overrides"], Path(event["run_dir"]))
        for event in record.events(STARTED, DONE_BEFORE)
    }
    if not found and sweep_dir is not None:
        with suppress(OSError):
            found = {
                str(folder): _Ended(folder.name, _overrides(folder), folder)
                for folder, _, files in walk(sweep_dir)
                if JOB_FILE in files
            }
    return sorted(found.values(), key=lambda job: (len(job.number), job.number))


def _overrides(run_dir: Path) -> list[str]:
    with suppress(OSError):
        overrides = read_json_object(run_dir / JOB_FILE, _LIMIT_BYTES, below=run_dir).get("overrides")
        if isinstance(overrides, list):
            return [str(override) for override in overrides]
    return []


def _list(jobs: Sequence[_Ended]) -> None:
    if jobs:
        common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
        lines = [job.line(common) for job in jobs[:MOST_LISTED]]
        print(f"\n{len(jobs)} job{'s' * (len(jobs) != 1)}:", *lines, sep="\n")
        if len(jobs) > MOST_LISTED:
            print(f"  … and {len(jobs) - MOST_LISTED} more")


def _show_report(jobs: Sequence[_Ended], sweep_dir: Path) -> None:
    """Write the report and print where it is. No failure of it is one of the sweep."""
    if not any(RunFiles(job.run_dir).read_status().get("status") == "finished" for job in jobs):
        return
    folder, logs = shell_word(str(sweep_dir)), shell_word(str(named_runs.logdir(sweep_dir)))
    lines = (_report(sweep_dir), f"tensorboard --logdir {logs}", f"python -m ddp_agent.report {folder}")
    print("", *lines, sep="\n  ", flush=True)


def _report(sweep_dir: Path) -> str:
    path = os.pathsep.join(filter(None, [str(_PACKAGE), os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ddp_agent.report", str(sweep_dir)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=REPORT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no report: {plain(error, 300)}"
    page = sweep_dir / "report" / "index.html"
    if done.returncode == 0 and page.is_file():
        return f"report: {page}"
    return f"no report: {plain((done.stderr.strip().splitlines() or ['unknown'])[-1], 300)}"


def _print_way_on(sweep_dir: Path | None) -> None:
    way = "hydra.sweep.dir=<this sweep's directory>" if sweep_dir is None else override("hydra.sweep.dir", sweep_dir)
    print(f"to run what is left: the same command with {way}", file=sys.stderr)
