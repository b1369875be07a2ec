"""Readers of run directories and sweeps, with good files each."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import fuzzing
import planned_runs
import pytest
from fuzzed_readers import Damage, Reader, one_file
from records import Records
from report_cases import make_sweep, printed, result_of
from torch import nn

from ddp_agent.cli import sweep_job, sweep_record
from ddp_agent.cli.composition import redact_saved
from ddp_agent.outputs import restarts as attempts
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.outputs.tensorboard import History, TensorBoardMirror
from ddp_agent.plan.__main__ import main as plan
from ddp_agent.report.output_folder import check_free
from ddp_agent.report.report_json import report_json
from ddp_agent.report.runs.run import ReportError


def write_history(path: Path) -> None:
    directory = RunDirectory(path)
    records = Records(directory, "accuracy")
    records.begin(nn.Linear(2, 2), {})
    for step in range(1, 5):
        records.log(step, {"train_loss": 1 / step})
        records.evaluation(step, {"test_accuracy": 0.5}, train_s=step, payload_bytes=100, model=nn.Linear(2, 2))
    records.close()
    (event_file,) = (path / "tensorboard").iterdir()
    event_file.rename(path / "tensorboard" / "events.out.tfevents.1")
    directory.write_status("failed", "tired")
    directory.close()
    (path / "attempts.json").write_text('[{"attempt": 0, "from_step": 0}, {"attempt": 1, "from_step": 2}]')
    (path / "job.json").write_text('{"overrides": ["a=1"], "attempts": 2}')


def replay(path: Path) -> None:
    mirror = TensorBoardMirror(path / "again", "test_accuracy")
    try:
        mirror.replay(History.read(path, 3))
    finally:
        mirror.close()


def status(path: Path) -> None:
    RunFiles(path).read_status().get("status")
    directory = RunDirectory(path, restart=True)
    with directory:
        directory.reason()
        directory.write_status("failed", "again")


def begin(path: Path) -> None:
    with RunDirectory(path, restart=True) as directory:
        attempts.begin(directory, 2, 2, None)


def earlier_attempts(path: Path) -> int:
    with contextlib.redirect_stderr(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setenv(sweep_record._FILE, str(path / "failures"))
        return sweep_job._earlier_attempts(path, ["a=1"], "job 0")


def objective(path: Path) -> float | None:
    with contextlib.redirect_stderr(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setenv(sweep_record._FILE, str(path / "failures"))
        return sweep_job._objective(path)


def write_finished(path: Path) -> None:
    write_history(path)
    (path / "summary.json").write_text('{"status": "finished", "best_metric": 0.5}')


def history(victim: str, read: Callable[[Path], object], damage: Damage, *errors: type[Exception]) -> Reader:
    return Reader(victim, write_history, read, errors, damage)


def write_report_runs(path: Path) -> None:
    make_sweep(path, {"allreduce": [0.9, 0.8], "local_sgd": [0.7]}, target=0.6, period=4)


def report(path: Path) -> str:
    result = result_of(path)
    json.loads(report_json(result, []))
    return printed(result)


def report_of(victim: str, damage: Damage) -> Reader:
    return Reader(f"1/{victim}", write_report_runs, report, (ReportError,), damage)


def write_planned_runs(path: Path) -> None:
    planned_runs.sweep(path, planned_runs.World(), ["independent", "allreduce", "local_sgd H=8", "diloco H=16 int8"])


def plan_for(path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert plan([str(path), "--rate", "1gbit", "--ranks", "2,64"]) in (0, 2)


def write_saved(path: Path) -> None:
    (path / ".hydra").mkdir()
    (path / ".hydra" / "hydra.yaml").write_text("hydra: {overrides: {task: [token=abc]}, job: {x: '${y}'}}\n")


INDEX = json.dumps({"generator": "ddp_agent.report", "files": ["report.json", "index.html"]})
RUNS = {
    "metrics.jsonl": history("metrics.jsonl", replay, fuzzing.damaged_lines),
    "events": history("tensorboard/events.out.tfevents.1", replay, fuzzing.damaged),
    "status.json": history("status.json", status, fuzzing.damaged_json),
    "attempts.json": history("attempts.json", begin, fuzzing.damaged_json),
    "job.json": history("job.json", earlier_attempts, fuzzing.damaged_json, sweep_job.JobFailedError),
    "lock": history(".lock", lambda path: RunFiles(path).state(), fuzzing.damaged),
    "objective": Reader("summary.json", write_finished, objective, (sweep_job.JobFailedError,), fuzzing.damaged_json),
    "report: summary": report_of("summary.json", fuzzing.damaged_json),
    "report: status": report_of("status.json", fuzzing.damaged_json),
    "report: metrics": report_of("metrics.jsonl", fuzzing.damaged_lines),
    "report: config": report_of(".hydra/config.yaml", fuzzing.damaged_json),
    "report: overrides": report_of(".hydra/overrides.yaml", fuzzing.damaged_json),
    "report: index": one_file(
        "report.json", INDEX, lambda path: check_free(path.parent, {"a": b""}), ReportError, damage=fuzzing.damaged_json
    ),
    "plan: summary": Reader("1/summary.json", write_planned_runs, plan_for, (), fuzzing.damaged_json),
    "plan: config": Reader("1/.hydra/config.yaml", write_planned_runs, plan_for, (), fuzzing.damaged_json),
    "saved configs": Reader(".hydra/hydra.yaml", write_saved, lambda path: redact_saved(path, path), ()),
}
