"""launch/multinode.sh and launch/local.sh: the torchrun that they start."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from stub_programs import program

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"

TOLD = """#!/usr/bin/env bash
printf '%s\\n' "$@"
echo "earlier attempts: ${DDP_AGENT_EARLIER_ATTEMPTS-}"
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that only says what it was told."""
    return program(tmp_path, "python", TOLD)


def multinode(python: Path, *typed: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("multinode.sh", python, *typed, **environment)


def run(script: str, python: Path, *typed: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHON": str(python), **environment}
    command = [str(LAUNCH / script), *typed]
    return subprocess.run(command, env=env, cwd=python.parent, capture_output=True, text=True, check=False)


STATIC = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501", "NPROC_PER_NODE": "8"}


@pytest.mark.parametrize("prefix", ["", "PET_"])
def test_multinode_passes_on_where_the_nodes_meet(prefix: str, python: Path) -> None:
    """Told by a person, or as Kubeflow tells torchrun."""
    told = multinode(python, "sync=diloco", **{f"{prefix}{name}": value for name, value in STATIC.items()})
    *options, train, device, typed, _ = told.stdout.splitlines()
    expected = {"--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=29501", "--nproc-per-node=8"}
    assert expected <= set(options)
    assert (Path(train).resolve(), device, typed) == (ROOT / "train.py", "device=cuda", "sync=diloco")


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


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("NNODES", "two"),
        ("NNODES", "1:2"),
        ("NODE_RANK", "abc"),
        ("NODE_RANK", "2"),
        ("NODE_RANK", "-1"),
        ("MASTER_PORT", "99999"),
        ("NPROC_PER_NODE", "0"),
        ("MAX_RESTARTS", "x[$(touch touched)]"),
    ],
)
def test_multinode_refuses_what_is_no_number(name: str, wrong: str, python: Path) -> None:
    told = multinode(python, **{**STATIC, name: wrong})
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"{name}: found {wrong}, expected ")
    assert not (python.parent / "touched").exists()


def test_several_machines_train_on_cpu_only_where_that_is_typed(python: Path) -> None:
    nodes = {name: value for name, value in STATIC.items() if name != "NPROC_PER_NODE"}
    gpus = TOLD.replace("printf", '[[ $1 != -c ]] || { echo "$GPUS"; exit; }\nprintf', 1)
    program(python.parent, "python", gpus)
    refused = multinode(python, "sync=diloco", **nodes, GPUS="0")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("device: found no GPU on ")
    assert "--gpus-per-node" in refused.stderr and "device=cpu" in refused.stderr
    for typed, count in ((["sync=diloco"], 8), (["device=cpu"], 2), (["+experiment=x", "device=auto"], 2)):
        told = multinode(python, *typed, **nodes, GPUS=str(count))
        assert f"--nproc-per-node={count}" in told.stdout
        assert ("device=cuda" in told.stdout) == (not any(word.startswith("device=") for word in typed))


@pytest.mark.parametrize("earlier", [0, 1, 12])
def test_multinode_goes_on_with_a_run_that_is_there(earlier: int, python: Path, tmp_path: Path) -> None:
    """The script counts the entries that `attempts.begin` writes: a directory without any is a new run."""
    run_dir = tmp_path / "a run"
    if earlier:
        run_dir.mkdir()
        noted = [{"attempt": number, "from_step": 0} for number in range(earlier)]
        (run_dir / "attempts.json").write_text(json.dumps(noted))
    told = multinode(python, "device=cpu", **STATIC, RUN_DIR=str(run_dir))
    assert told.stderr == ""
    assert told.stdout.splitlines()[-2:] == [f"hydra.run.dir='{run_dir}'", f"earlier attempts: {earlier}"]


def test_multinode_refuses_a_directory_that_cannot_be_quoted(python: Path) -> None:
    told = multinode(python, **STATIC, RUN_DIR="it's")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("RUN_DIR: found it's, expected a path without '")
