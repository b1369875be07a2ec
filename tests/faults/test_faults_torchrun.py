"""Faults under the real torchrun, from the launchers that people use. Other tests use a forked one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from fault_points import Fault
from forked_torchrun import Outcome, run
from processes import listen_to_ctrl_c, with_variable
from whole_runs import EVERY_FIVE, MODES, SMALL, Wholes, checkpoints

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]
GONE_S = 5.0
MARK = "RUN_OF_TEST"

TRAIN = f"""
import json, os, runpy, sys
from pathlib import Path
from ddp_agent.cli import leave, main
real = runpy.run_path({str(ROOT / "train.py")!r}, run_name="real")
if "RANK" in os.environ:
    sys.path.insert(0, {str(ROOT / "tests" / "support")!r})
    from ddp_agent.outputs import restarts as attempts
    from fault_points import Fault, arm
    attempts.FUTILE = int(os.environ.get("FUTILE", attempts.FUTILE))
    faults = [Fault(**told) for told in json.loads(os.environ["FAULTS"])]
    arm(faults, int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
leave(main(real["train"], check=real["check"], conf=Path({str(ROOT / "conf")!r})))
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """launch/local.sh beside a train.py that can be hurt. A test that fails leaves nobody either."""
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "local.sh", tmp_path / "launch")
    (tmp_path / "train.py").write_text(TRAIN)
    yield tmp_path
    for pid in left_of(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start(
    project: Path, *command: str | Path, faults: Sequence[Fault] = (), **variables: str
) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own, as a shell does."""
    environment = os.environ | {"FAULTS": json.dumps([asdict(fault) for fault in faults]), "PYTHONPATH": str(ROOT)}
    environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", MARK: str(project)} | variables
    return subprocess.Popen(
        list(map(str, command)),
        cwd=project,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=listen_to_ctrl_c,
    )


def outcome(project: Path) -> Outcome:
    return Outcome(project / "outputs" / "run")


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists() or not path.read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def left_of(project: Path) -> list[int]:
    """Ids of all processes of the project's commands that still run."""
    return with_variable(MARK, project)


def test_ctrl_c_saves_and_leaves_nobody(project: Path) -> None:
    """It reaches torchrun, which tells its ranks; they are in sessions of their own."""
    process = start(project, sys.executable, "train.py", *SMALL, "max_steps=1000000", "run_name=run", "log_every=100")
    asked = outcome(project)
    wait_for(asked.run_dir / "metrics.jsonl", process)
    os.killpg(process.pid, signal.SIGINT)
    assert len(left_of(project)) >= 3
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 75, said
    assert asked.status["status"] == "preempted"
    assert asked.status["reason"].startswith("SIGINT on rank ")
    assert checkpoints(asked.run_dir)[-1] == asked.status["step"]
    assert left_of(project) == []


def test_a_launcher_that_is_asked_twice_saves_and_leaves_nobody(project: Path, tmp_path: Path, wholes: Wholes) -> None:
    """torchrun itself exits with 1, whatever its ranks did; the second time it is asked while they save."""
    slow = [Fault("step", "slow", None), Fault("half a file", "doze", None)]
    process = start(project, "launch/local.sh", "--nproc", "2", *SMALL, *MODES["diloco"], "run_name=run", faults=slow)
    asked = outcome(project)
    wait_for(asked.run_dir / "metrics.jsonl", process)
    for _ in range(2):
        process.terminate()
        time.sleep(1)
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0, said
    assert asked.status["status"] == "preempted", said
    assert asked.status["reason"].startswith("SIGTERM on rank ")
    assert checkpoints(asked.run_dir)[-1] == asked.status["step"]
    assert left_of(project) == []
    resumed = run(tmp_path / "resumed", 2, [*SMALL, *MODES["diloco"], f"resume='{asked.run_dir}'"])
    wholes.assert_same_end(resumed, "diloco", 2)


def test_a_killed_torchrun_takes_its_ranks_along(project: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    process = start(project, *torchrun, *SMALL, "max_steps=1000000", "run_name=run", "log_every=100", "sync=diloco")
    wait_for(outcome(project).run_dir / "metrics.jsonl", process)
    assert len(left_of(project)) >= 3
    process.kill()
    deadline = time.monotonic() + GONE_S
    while left_of(project) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_of(project) == []


def test_local_sh_goes_on_by_itself(project: Path, wholes: Wholes) -> None:
    typed = [*SMALL, *MODES["diloco"], *EVERY_FIVE, "run_name=run"]
    kill = [Fault("step", "slow", None), Fault("step", "SIGKILL", 1, 23)]
    process = start(project, "launch/local.sh", "--nproc", "2", "--max-restarts", "3", *typed, faults=kill)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "exitcode: -9) local_rank: 1" in said, "which rank, and by which signal"
    assert "rank 1: died without a word" in said
    assert f"resumed from step 20 of {outcome(project).run_dir}" in said
    wholes.assert_same_end(outcome(project), "diloco", 2)


def test_a_crash_loop_ends_torchrun_too(project: Path) -> None:
    """The run ends after one futile attempt here, since each takes ten seconds. Forked ranks test all three."""
    crash = [Fault("step", "raise", 0, 3, attempt=None)]
    command = ["launch/local.sh", "--nproc", "1", "--max-restarts", "50", *SMALL, "sync=independent", "run_name=run"]
    process = start(project, *command, faults=crash, FUTILE="1")
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert said.count("BugError: a bug in the model\n") == 1, said
    assert "1 attempts in a row began after step 0" in said
    assert outcome(project).status["status"] == "failed"
    assert left_of(project) == []


def test_the_error_that_came_first_is_told_last(project: Path) -> None:
    """torchrun's report, with the rank and its traceback; its exit code is the rank's."""
    crash = [Fault("step", "raise", 1, 9)]
    process = start(project, sys.executable, "train.py", *SMALL, "sync=allreduce", "run_name=run", faults=crash)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    report = said[said.index("Root Cause (first observed failure)") :]
    assert "rank      : 1" in report
    assert "BugError: a bug in the model" in report
    assert outcome(project).status["rank"] == 1
    assert left_of(project) == []
