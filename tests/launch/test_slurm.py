"""launch/slurm.sbatch and sweeps through submitit, on a real Slurm of two nodes."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked_torchrun import Outcome
from slurm_cluster import SlurmCluster, why_not
from whole_runs import MODES, SMALL, STEPS, Wholes, checkpoints

REASON = why_not()
pytestmark = [pytest.mark.faults, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
ROOT = Path(__file__).parents[2]
HELD_S = 120.0
LOCAL = (*SMALL, *MODES["local_sgd"])

# Each attempt stays at a step of its own, inside a period of 8, until it is told to stop. The last runs through.
TRAIN = f"""
import os, runpy, sys, time
from pathlib import Path
from ddp_agent.cli import leave, main
real = runpy.run_path({str(ROOT / "train.py")!r}, run_name="real")
if "RANK" in os.environ:
    sys.path.insert(0, {str(ROOT / "tests" / "support")!r})
    from ddp_agent.training.session import Session
    from fault_points import Fault, arm, patch
    steps = dict(enumerate(map(int, os.environ.get("HELD_STEPS", "").split())))
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    def hold(at, step):
        if step == steps.get(attempt):
            Path(f"held.{{attempt}}.{{os.environ['RANK']}}").touch()
            end = time.monotonic() + {HELD_S}
            while not at.setup.failure_detector.stop_request and time.monotonic() < end:
                time.sleep(0.02)
    patch(Session, "set_lr", hold)
    if "BUG" in os.environ:
        arm([Fault("step", "raise", 1, 9)], int(os.environ["RANK"]), 0)
leave(main(real["train"], check=real["check"], conf=Path({str(ROOT / "conf")!r})))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with SlurmCluster() as cluster:
        yield cluster
    assert cluster.left() == []
    assert not cluster.folder.exists()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """launch/ beside a train.py that can be held up and hurt."""
    (tmp_path / "launch").mkdir()
    for name in ("slurm.sbatch", "multinode.sh", "check.sh"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch")
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    """Both nodes have this machine's name, so gloo is told where to listen."""
    shown = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return {**shown, "NPROC_PER_NODE": "1", **more}


def submit(cluster: SlurmCluster, project: Path, *typed: str, **more: str) -> tuple[str, Outcome]:
    number = cluster.submit("launch/slurm.sbatch", *typed, cwd=project, environment=environment(**more))
    return number, Outcome(project / "outputs" / f"slurm-{number}")


def log(project: Path, number: str) -> str:
    return (project / f"slurm-{number}.log").read_text()


def wait_until_held(project: Path, number: str, attempt: int) -> None:
    deadline = time.monotonic() + HELD_S
    while len(list(project.glob(f"held.{attempt}.*"))) < 2:
        assert time.monotonic() < deadline, log(project, number)
        time.sleep(0.05)


def assert_saved(outcome: Outcome, held_step: int) -> None:
    """Assert that the run was stopped inside a period, and saved."""
    status = outcome.status
    assert status["status"] == "preempted"
    assert held_step <= status["step"] <= held_step + 1
    assert status["step"] % 8 != 0
    assert checkpoints(outcome.run_dir)[-1] == status["step"]


def test_a_job_preempted_in_a_period_goes_on_as_if_nothing_had_been(
    cluster: SlurmCluster, project: Path, wholes: Wholes
) -> None:
    """A run on two nodes, which ends as one on one machine does. It is stopped first by a job that goes before it:
    Slurm tells the ranks. Then as before the end of its time: it tells the script, by the signal that was asked for."""
    number, outcome = submit(cluster, project, *LOCAL, HELD_STEPS="12 21")
    wait_until_held(project, number, 0)
    urgent = cluster.submit("--partition=urgent", "--exclusive", "--nodes=2", "--wrap", "true", cwd=project)
    cluster.wait_for(number, "PENDING")
    assert_saved(outcome, 12)
    assert cluster.wait_for(urgent, "COMPLETED")["ExitCode"] == "0:0"
    wait_until_held(project, number, 1)
    cluster.call("scancel", "--batch", "--signal=USR1", number)
    cluster.wait_for(number, "PENDING")
    assert_saved(outcome, 21)
    job = cluster.wait_for(number, "COMPLETED", "FAILED")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "2"), log(project, number)
    said = log(project, number)
    assert said.count("returns to the queue") == 2
    assert said.count("resumed from step") == 2
    attempts = json.loads((outcome.run_dir / "attempts.json").read_text())
    assert [it["attempt"] for it in attempts] == [0, 1, 2]
    assert checkpoints(outcome.run_dir)[-1] == STEPS
    assert json.loads((outcome.run_dir / "summary.json").read_text())["nodes"] == 2
    wholes.assert_same_end(outcome, "local_sgd", 2)


def test_a_job_that_fails_says_why_and_is_not_queued_again(cluster: SlurmCluster, project: Path) -> None:
    number, outcome = submit(cluster, project, *LOCAL, BUG="1")
    job = cluster.wait_for(number, "COMPLETED", "FAILED")
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "1:0", "0")
    said = log(project, number)
    assert "BugError: a bug in the model" in said
    told = said[said.rindex(f"job {number}: failed; srun's exit code") :]
    assert json.loads(told[told.index("{") : told.index("}") + 1]) == outcome.status
    assert (outcome.status["status"], outcome.status["rank"]) == ("failed", 1)


def test_a_cancelled_job_stays_cancelled(cluster: SlurmCluster, project: Path) -> None:
    number, _ = submit(cluster, project, *LOCAL, HELD_STEPS="12")
    cluster.wait_for(number, "RUNNING")
    while "0" not in cluster.call("squeue", "-h", "-s", "-j", number):
        time.sleep(0.05)
    cluster.call("scancel", number)
    while "COMPLETING" in (state := cluster.job(number)["JobState"]):
        time.sleep(0.05)
    assert (state, cluster.job(number)["Restarts"]) == ("CANCELLED", "0")


ASKS = """
from ddp_agent.distributed.process import TorchrunEnvironment
from ddp_agent.errors import ConfigError
try:
    print("alone", TorchrunEnvironment.read())
except ConfigError as refused:
    print(str(refused).splitlines()[0])
"""


def test_tasks_of_srun_are_told_from_a_batch_script_and_an_salloc_shell(cluster: SlurmCluster, project: Path) -> None:
    (project / "asks.py").write_text(ASKS)
    ask = f"env PYTHONPATH={ROOT} {sys.executable} asks.py"
    steps = [f"{step} {ask} >{name}" for step, name in (("", "batch"), ("srun", "two"), ("srun -n1 -N1", "one"))]
    number = cluster.submit("--nodes=2", "--ntasks=2", "--wrap", "; ".join(steps), cwd=project)
    cluster.wait_for(number, "COMPLETED", "FAILED")
    cluster.call("salloc", "--ntasks=2", "bash", "-c", f"{ask} >shell", cwd=project)
    said = {name: (project / name).read_text().splitlines() for name in ("batch", "shell", "one", "two")}
    assert said["batch"] == said["shell"] == said["one"] == ["alone None"]
    assert sorted(line[:38] for line in said["two"]) == [f"SLURM_PROCID: found task {n} of 2 tasks," for n in (0, 1)]


def test_the_first_example_checks_the_cluster_and_says_that_it_has_no_gpu(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    """The commands of launch/README.md as they stand there: asked for a GPU, and told what to do without."""
    for name in ("launch", "ddp_agent", "conf", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    typed = [("sync=diloco", "reducer=int8", "checkpoint_every=500"), ("--check", "device=cpu")]
    node = {name: value for name, value in environment().items() if name != "NPROC_PER_NODE"}
    numbers = [cluster.submit("launch/slurm.sbatch", *words, cwd=tmp_path, environment=node) for words in typed]
    jobs = [cluster.wait_for(number, "COMPLETED", "FAILED") for number in numbers]
    assert all(job["TresPerNode"] == "gres:gpu:1" for job in jobs)
    assert "device: found no GPU on" in log(tmp_path, numbers[0])
    assert [job["JobState"] for job in jobs] == ["FAILED", "COMPLETED"], log(tmp_path, numbers[1])
    said = log(tmp_path, numbers[1])
    assert "ranks: 4 on 2 nodes" in said
    assert said.endswith("All is well: a run can start.\n")


def sweep(cluster: SlurmCluster, project: Path, *typed: str) -> subprocess.CompletedProcess[str]:
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=5")
    command = [sys.executable, str(ROOT / "train.py"), "-m", *launcher, "nproc_per_node=1", *SMALL, *typed]
    env: dict[str, Any] = cluster.environment | environment()
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False, timeout=200)


def test_a_sweep_of_four_jobs_one_of_which_is_refused(cluster: SlurmCluster, project: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install -e '.[slurm]'")
    done = sweep(cluster, project, "hydra.sweep.dir=swept", "sync=local_sgd", "sync.period=4,0", "seed=0,1")
    assert done.returncode == 1, done.stderr
    found = [json.loads(path.read_text()) for path in sorted((project / "swept").glob("[0-3]/summary.json"))]
    assert [(it["seed"], it["period"], it["status"]) for it in found] == [(0, 4, "finished"), (1, 4, "finished")]
    refused = [json.loads(path.read_text()) for path in sorted((project / "swept").glob("[23]/status.json"))]
    assert len(refused) == 2
    assert all(it["status"] == "failed" and it["reason"].startswith("sync.period: found 0") for it in refused)
    assert "failed in this sweep: 2" in done.stderr
    assert re.search(r"job 2 \(.*\) failed: sync\.period: found 0", done.stderr)
    assert os.listdir(project / "swept" / ".submitit"), "by way of Slurm"
