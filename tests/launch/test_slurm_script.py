"""The decisions of launch/slurm.sbatch. tests/launch/test_slurm.py runs it on a real Slurm."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from stub_programs import program

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"

PROGRAMS = {
    "scontrol": """
        case $1 in
        requeue) echo "$2" >>requeued; exit "${REQUEUE_CODE:-0}" ;;
        *)
            case $2 in
            hostnames) printf 'n1\\nn2\\n' ;;
            node) echo "NodeName=$3 NodeAddr=10.0.0.1 Port=1" ;;
            job) echo "JobId=$3 PreemptEligibleTime=2026-11-27T22:29:00 PreemptTime=${PREEMPT_TIME-None}" ;;
            esac
            ;;
        esac
        """,
    "scancel": """printf '%s\\n' "$@" >told""",
    "srun": """
        env >environment
        touch started
        if [[ -n ${WAIT_FOR-} ]]; then until [[ -e $WAIT_FOR ]]; do sleep 0.02; done; fi
        mkdir -p "$RUN_DIR"
        [[ -z $SAYS ]] || printf '{\\n  "status": "%s",\\n  "unix_s": 2\\n}\\n' "$SAYS" >"$RUN_DIR"/status.json
        exit "$CODE"
        """,
}


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """A folder in which Slurm's commands only write down what they were told."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        program(tmp_path / "bin", name, "#!/usr/bin/env bash\n" + text)
    (tmp_path / "launch").symlink_to(LAUNCH)
    return tmp_path


def start(batch: Path, **environment: str) -> "subprocess.Popen[str]":
    env = {"PATH": f"{batch / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2"}
    env |= {"SLURM_JOB_ID": "70017", "RUN_DIR": "run", **environment}
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "sync=diloco"]
    return subprocess.Popen(command, cwd=batch, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("says", "code", "expected", "queued"),
    [
        ("finished", 0, 0, False),
        ("finished", 1, 1, False),
        ("failed", 1, 1, False),
        ("running", 1, 1, False),  # killed without a word
        ("", 1, 1, False),  # refused
        ("", 0, 1, False),
        ("", 143, 1, False),  # one node ended, and srun the other
        ("preempted", 1, 0, True),  # torchrun exits with 1 after a signal
    ],
)
def test_a_job_is_queued_again_when_it_was_preempted(
    says: str, code: int, expected: int, queued: bool, batch: Path
) -> None:
    process = start(batch, SAYS=says, CODE=str(code))
    said = process.communicate(timeout=20)
    assert process.returncode == expected, said
    assert (batch / "requeued").exists() == queued
    if says:
        assert expected == 0 or f'"status": "{says}"' in said[1]


@pytest.mark.parametrize(("says", "queued"), [("", True), ("running", True), ("failed", True), ("finished", False)])
def test_a_preemption_may_come_before_the_ranks_can_save(says: str, queued: bool, batch: Path) -> None:
    """Or while one of them has not begun yet, whose peers then call it a failure. Slurm knows better."""
    process = start(batch, SAYS=says, CODE="1", PREEMPT_TIME="2026-11-27T22:30:00")
    said = process.communicate(timeout=20)
    assert process.returncode == (0 if queued else 1), said
    assert (batch / "requeued").exists() == queued


def test_what_an_earlier_attempt_said_is_not_news(batch: Path) -> None:
    (batch / "run").mkdir()
    (batch / "run" / "status.json").write_text('{\n  "status": "preempted",\n  "unix_s": 1\n}\n')
    process = start(batch, SAYS="", CODE="1")
    process.communicate(timeout=20)
    assert process.returncode == 1
    assert not (batch / "requeued").exists()


def test_a_job_that_cannot_be_queued_says_how_to_go_on(batch: Path) -> None:
    process = start(batch, SAYS="preempted", CODE="1", REQUEUE_CODE="1")
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 75
    assert "to resume: RUN_DIR='run' sbatch launch/slurm.sbatch sync=diloco" in said


def started(batch: Path) -> bool:
    deadline = time.monotonic() + 20
    while not (batch / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("says", ["preempted", "", "failed"])
def test_the_signal_before_the_end_of_time_reaches_the_ranks(says: str, batch: Path) -> None:
    """And the script waits for what they make of it, also where training had not begun."""
    process = start(batch, SAYS=says, CODE="1", WAIT_FOR="told")
    assert started(batch)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert (batch / "told").read_text().split() == ["--signal=USR1", "70017"]
    assert process.returncode == 0
    assert (batch / "requeued").read_text() == "70017\n"


@pytest.mark.parametrize(("says", "code"), [("preempted", 1), ("", 143)])
def test_a_cancelled_job_is_not_queued_again(says: str, code: int, batch: Path) -> None:
    process = start(batch, SAYS=says, CODE=str(code), WAIT_FOR="go")
    assert started(batch)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    (batch / "go").touch()
    process.communicate(timeout=20)
    assert process.returncode == 1
    assert not (batch / "requeued").exists()


def test_a_job_that_is_cancelled_while_it_saves_is_waited_for(batch: Path) -> None:
    process = start(batch, SAYS="preempted", CODE="1", WAIT_FOR="go")
    assert started(batch)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.2)
    assert process.poll() is None
    (batch / "go").touch()
    process.communicate(timeout=20)
    assert not (batch / "requeued").exists()


def test_nodes_are_told_where_to_meet(batch: Path) -> None:
    start(batch, SAYS="finished", CODE="0").communicate(timeout=20)
    environment = set((batch / "environment").read_text().splitlines())
    assert {"NNODES=2", "MASTER_ADDR=10.0.0.1", "MASTER_PORT=20017", "RUN_DIR=run"} <= environment


def test_outside_of_slurm_the_script_says_what_it_is_for(batch: Path) -> None:
    process = start(batch, SLURM_JOB_ID="")
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 2
    assert "  sbatch launch/slurm.sbatch sync=diloco reducer=int8" in said
    assert "#SBATCH" not in said
