"""What launch/ holds for clusters: that it can be parsed, that its commands are right, and what its scripts decide.

That they work is what tests/launch/test_slurm.py is for.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from configs import settings

from ddp_agent.cli.sweep import _first_job

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
STARTS = re.compile(r"^[^\"]*(?:launch/(?:local|multinode|elastic)\.sh|launch/slurm\.sbatch|train\.py) (?P<typed>.*)")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script: Path) -> None:
    read = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")
    assert os.access(script, os.X_OK)


# What they tell people to type


def commands() -> Iterator[tuple[str, str]]:
    """Each command of launch/README.md and of the scripts' own manuals: its file, and what follows the program."""
    for file in (LAUNCH / "README.md", *SCRIPTS):
        for line in file.read_text().replace("\\\n", " ").splitlines():
            if (found := STARTS.search(line)) and not set("[$…") & set(line):
                yield file.name, found["typed"].partition("  # ")[0].strip().strip("`")


@pytest.mark.parametrize(("file", "typed"), sorted(set(commands())))
def test_a_command_that_is_shown_composes(file: str, typed: str) -> None:
    overrides = [word for word in shlex.split(typed, comments=True) if re.match(r"\+?[a-z][\w./]*=", word)]
    if any("submitit" in override for override in overrides):
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install -e '.[slurm]'")
    assert overrides or "--help" in typed
    here = [override for override in overrides if not override.startswith("resume=")]  # a run that is elsewhere
    settings(*_first_job(here))


def test_commands_are_found() -> None:
    found = list(commands())
    own_manual = {script.name for script in SCRIPTS} - {"elastic.sh"}  # that one's is ddp_agent.elastic's --help
    assert {file for file, _ in found} == {"README.md", *own_manual}
    assert any("elastic" in typed or "--replicas" in typed for _, typed in found)
    assert len(found) >= 12


# Kubernetes


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))


@pytest.mark.parametrize(
    ("number", "module", "name"),
    [
        (0, "trainer_v1alpha1_train_job", "TrainerV1alpha1TrainJob"),
        (1, "io_k8s_api_core_v1_persistent_volume_claim", "IoK8sApiCoreV1PersistentVolumeClaim"),
    ],
)
def test_the_models_of_the_api_take_it_whole(
    number: int, module: str, name: str, documents: list[dict[str, Any]]
) -> None:
    """They drop what they do not know, so what they give back is compared."""
    pytest.importorskip("kubeflow_trainer_api", reason="needs pip install kubeflow-trainer-api")
    model = getattr(import_module(f"kubeflow_trainer_api.models.{module}"), name)
    assert model.from_dict(documents[number]).to_dict() == documents[number]
    assert documents[number]["kind"] == name.removeprefix("TrainerV1alpha1").removeprefix("IoK8sApiCoreV1")
    assert len(documents) == 2


def test_the_pods_run_what_is_there_on_a_disk_that_is_claimed(documents: list[dict[str, Any]]) -> None:
    job, claim = documents
    trainer = job["spec"]["trainer"]
    assert (ROOT / trainer["command"][0]).is_file()
    assert settings(*trainer["args"], world_size=trainer["numNodes"] * trainer["numProcPerNode"])
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"]
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    claims = {it["name"]: it["persistentVolumeClaim"] for it in pod["volumes"] if "persistentVolumeClaim" in it}
    assert claims == {"runs": {"claimName": claim["metadata"]["name"]}}
    mounted = {it["name"]: it["mountPath"] for it in container["volumeMounts"]}
    assert mounted.keys() == {it["name"] for it in pod["volumes"]}
    environment = {it["name"]: it["value"] for it in trainer["env"]}
    assert environment["RUN_DIR"].startswith(mounted["runs"] + "/")
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


# launch/multinode.sh, and of launch/local.sh what both do

TOLD = """#!/usr/bin/env bash
printf '%s\\n' "$@"
echo "earlier attempts: ${DDP_AGENT_EARLIER_ATTEMPTS-}"
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that only says what it was told."""
    return program(tmp_path, "python", TOLD)


def program(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder / name


def multinode(python: Path, *typed: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("multinode.sh", python, *typed, **environment)


def run(script: str, python: Path, *typed: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHON": str(python), **environment}
    command = [LAUNCH / script, *typed]
    return subprocess.run(command, env=env, cwd=python.parent, capture_output=True, text=True, check=False)


STATIC = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501", "NPROC_PER_NODE": "8"}


@pytest.mark.parametrize("prefix", ["", "PET_"])
def test_multinode_passes_on_where_the_nodes_meet(prefix: str, python: Path) -> None:
    """Told by a person, or as Kubeflow tells torchrun."""
    told = multinode(python, "sync=diloco", **{f"{prefix}{name}": value for name, value in STATIC.items()})
    *options, train, typed, _ = told.stdout.splitlines()
    expected = {"--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=29501", "--nproc-per-node=8"}
    assert expected <= set(options)
    assert (Path(train).resolve(), typed) == (ROOT / "train.py", "sync=diloco")


@pytest.mark.parametrize("script", ["local.sh", "multinode.sh"])
def test_torchrun_hands_a_scheduler_s_signal_on(script: str, python: Path) -> None:
    told = run(script, python, **STATIC)
    (signals,) = re.findall("--signals-to-handle=(.*)", told.stdout)
    assert {"SIGTERM", "SIGUSR1"} <= set(signals.split(","))


@pytest.mark.parametrize(("left_out", "message"), [("NNODES", "NNODES: missing"), ("NODE_RANK", "NODE_RANK: missing")])
def test_multinode_refuses_what_is_not_enough(left_out: str, message: str, python: Path) -> None:
    told = multinode(python, **{name: value for name, value in STATIC.items() if name != left_out})
    assert told.returncode == 2
    assert told.stderr.startswith(message)


@pytest.mark.parametrize("earlier", [0, 1, 12])
def test_multinode_goes_on_with_a_run_that_is_there(earlier: int, python: Path, tmp_path: Path) -> None:
    """What `attempts.begin` notes is counted, since a run directory without an attempt is a new one."""
    run_dir = tmp_path / "a run"
    if earlier:
        run_dir.mkdir()
        noted = [{"attempt": number, "from_step": 0} for number in range(earlier)]
        (run_dir / "attempts.json").write_text(json.dumps(noted))
    told = multinode(python, "seed=1", **STATIC, RUN_DIR=str(run_dir))
    assert told.stderr == ""
    assert told.stdout.splitlines()[-2:] == [f"hydra.run.dir='{run_dir}'", f"earlier attempts: {earlier}"]


def test_multinode_refuses_a_directory_that_cannot_be_quoted(python: Path) -> None:
    told = multinode(python, **STATIC, RUN_DIR="it's")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("RUN_DIR: found it's, expected a path without '")


# launch/slurm.sbatch

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
    command = ["bash", LAUNCH / "slurm.sbatch", "sync=diloco"]
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
