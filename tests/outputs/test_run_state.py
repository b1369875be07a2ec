"""A run that no process runs is not called running, by the report either."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from report_cases import make_run

from ddp_agent.errors import ConfigError
from ddp_agent.outputs import run_files
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.outputs.run_status import conclude
from ddp_agent.report.runs.run import find_runs


def left_running(path: Path, lock: str | None = None) -> Path:
    """Make the directory of a run that was killed. `lock`: what its lock says instead of this process."""
    with RunDirectory(path) as run:
        run.write_status("running", step=5)
        run.metrics.write_text("")
    if lock is not None:
        run.lock.write_text(lock)
    return path


def its_own() -> None:
    """Return None: the lock keeps what the run wrote."""


def other_container() -> str:
    return f"pid 7 on a-container, boot {run_files.this_machine()[1]}"


def this_machine_of_an_older_version() -> str:
    return f"pid 7 {run_files.this_machine()[0]}"


@pytest.mark.parametrize("lock", [its_own, other_container, this_machine_of_an_older_version])
def test_a_run_whose_process_is_gone_has_died(lock: Callable[[], str | None], tmp_path: Path) -> None:
    state = RunFiles(left_running(tmp_path / "run", lock())).state()
    assert state["status"] == "died"
    assert "is gone; last sign of life 20" in state["reason"]
    (run,) = find_runs([tmp_path])
    assert run.problem is not None and run.problem.startswith("died, rank 0, step 5, reason pid ")


@pytest.mark.parametrize("lock", ["pid 7 on elsewhere, boot 0", "pid 7 on elsewhere", "", "\x1b[2Jpid 7"])
def test_a_run_of_another_machine_is_unknown(lock: str, tmp_path: Path) -> None:
    state = RunFiles(left_running(tmp_path, lock)).state()
    assert state["status"] == "unknown"
    assert "last sign of life 20" in state["reason"] and "\x1b" not in state["reason"]


def test_a_run_with_a_living_process_runs(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        run.write_status("running")
        assert RunFiles(run.path).state()["status"] == "running"
        (found,) = find_runs([tmp_path])
        assert found.problem == "running, rank 0"


def test_a_directory_without_a_lock_is_no_running_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run", status={"status": "running"})
    assert RunFiles(tmp_path / "run").state()["status"] == "died"


def test_a_reader_of_the_state_does_not_refuse_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the lock for a moment."""
    path = left_running(tmp_path)
    reader = os.open(path / ".lock", os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    monkeypatch.setattr("ddp_agent.outputs.run_directory.time.sleep", lambda _: os.close(reader))
    RunDirectory(path, restart=True).close()


def test_two_runs_in_one_directory_are_still_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path), pytest.raises(ConfigError, match="in use by another run"):
        RunDirectory(tmp_path, restart=True)


def status(path: Path) -> dict[str, object]:
    found = json.loads((path / "status.json").read_text())
    assert isinstance(found, dict)
    return found


def test_whoever_started_a_run_writes_its_end_only_if_it_has_none(tmp_path: Path) -> None:
    path = left_running(tmp_path / "run")
    earlier = status(path)
    conclude(path, "why", earlier=earlier)  # the processes never claimed the directory
    assert status(path) == earlier
    with RunDirectory(path, restart=True):
        conclude(path, "why")  # somebody runs it
        assert status(path) == earlier
    conclude(path, "why", 1)
    assert (status(path)["status"], status(path)["reason"], status(path)["rank"]) == ("failed", "why", 1)
    conclude(path, "another")
    assert status(path)["reason"] == "why"
    conclude(tmp_path / "nowhere", "why")
    assert not (tmp_path / "nowhere").exists()
