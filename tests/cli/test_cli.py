"""A command line becomes the right processes, one run directory and one message."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launching import accept, torchrun, type_in

from ddp_agent.cli import rank_process, relaunch
from ddp_agent.cli.command import quoted_home
from ddp_agent.cli.composition import NPROC_PER_NODE, Configs
from ddp_agent.distributed.process import TorchrunEnvironment
from ddp_agent.errors import ConfigError

pytestmark = pytest.mark.usefixtures("own_environment")


# What is typed


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("data_root=~/my data", "data_root='~/my data'"),
        ("+x.y=~", "+x.y='~'"),
        ("~reducer", "~reducer"),  # takes a group away
        ("data_root='~/a'", "data_root='~/a'"),
        ("data_root=a~b", "data_root=a~b"),
        ("--config-dir=~/a", "--config-dir=~/a"),
    ],
)
def test_a_home_is_a_value_too(typed: str, understood: str) -> None:
    assert quoted_home(typed) == understood


# Without torchrun


@pytest.mark.parametrize(
    ("cfg", "handed_down", "ranks"),
    [
        ({"nproc_per_node": 3}, "5", 3),
        ({"nproc_per_node": None}, "5", 5),
        ({"nproc_per_node": None, "device": "cpu"}, None, 2),
    ],
)
def test_how_many_ranks(
    cfg: dict[str, Any], handed_down: str | None, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if handed_down:
        monkeypatch.setenv(NPROC_PER_NODE, handed_down)
    assert relaunch._nproc_per_node(cfg) == ranks


@pytest.mark.parametrize("wrong", ["all", -1])
def test_a_wrong_number_of_ranks_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=f"nproc_per_node: found {wrong!r}, expected an integer >= 1"):
        relaunch._nproc_per_node({"nproc_per_node": wrong})


def test_torchrun_and_config_must_agree_on_the_number_of_ranks() -> None:
    environment = TorchrunEnvironment(rank=1, local_rank=1, world_size=4, local_world_size=2, node_rank=0)
    assert rank_process._world_size({"nproc_per_node": 2}, environment) == 4
    assert rank_process._world_size({"nproc_per_node": None}, environment) == 4
    with pytest.raises(ConfigError, match="nproc_per_node: found 3 under a torchrun that started 2 ranks"):
        rank_process._world_size({"nproc_per_node": 3}, environment)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ["--rdzv-backend=static", "--master-addr=127.0.0.1", "--master-port=PORT"]),
        # The rest torchrun reads itself.
        ({relaunch.NODES: "2", relaunch.NODE: "1", relaunch.ADDRESS: "h"}, []),
        ({relaunch.NODES: "2", "PET_RDZV_ENDPOINT": "h:1"}, []),
    ],
)
def test_torchrun_is_told_of_the_ranks_of_this_node(
    environment: dict[str, str], expected: list[str], configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr("torch.distributed.run.main", told.append)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    worlds: list[int] = []
    relaunch.run(configs, lambda context: worlds.append(context.world_size), ["t.py"], [], ["nproc_per_node=3"])
    said = [re.sub(r"port=\d+", "port=PORT", word) for word in told[0]]
    assert said == [*expected, f"--signals-to-handle={','.join(relaunch.SIGNALS)}", "--nproc_per_node=3", "t.py"]
    assert worlds == [3 * int(environment.get(relaunch.NODES, 1))]


def test_a_signal_that_nohup_ignores_stays_ignored(
    configs: Configs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr("torch.distributed.run.main", told.append)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        relaunch.run(configs, accept, ["t.py"], [], ["nproc_per_node=2"])
    finally:
        signal.signal(signal.SIGHUP, before)
    (handled,) = [word for word in told[0] if word.startswith("--signals-to-handle=")]
    assert "SIGHUP" not in handled and "SIGTERM" in handled
    assert capsys.readouterr().out == "starting 2 ranks …\n"


@pytest.mark.parametrize("wrong", ["1:4", "0", "two"])
def test_a_number_of_nodes_that_is_none_is_refused(
    wrong: str, configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(relaunch.NODES, wrong)
    with pytest.raises(ConfigError, match=f"{relaunch.NODES}: found '{wrong}', expected an integer >= 1"):
        relaunch.run(configs, accept, ["t.py"], [], [])


def test_a_command_may_take_over_what_was_checked_and_run_it_on_every_node(
    configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda file, command: became.append([file, *command]))
    monkeypatch.setattr(relaunch, "_torchrun", lambda *arguments: 0)
    monkeypatch.setenv(relaunch.ON_NODES, "everywhere 'a b'")
    with pytest.raises(ConfigError):
        relaunch.run(configs, accept, ["t.py"], ["sed=1"], ["sed=1"])
    relaunch.run(configs, accept, ["t.py"], ["seed=1"], ["seed=1"])
    assert became == [["everywhere", "everywhere", "a b", sys.executable, "t.py", "seed=1"]]
    assert relaunch.ON_NODES not in os.environ, "the nodes would start nodes"


def test_a_refused_run_starts_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def never(*arguments: object) -> int:
        raise AssertionError("torchrun was started")

    monkeypatch.setattr(relaunch, "_torchrun", never)
    assert type_in(monkeypatch, project, "seed=-1", "sync.perid=1") == 2
    said = capsys.readouterr()
    assert said.err == (
        "sync.perid: unknown key, did you mean period? (known: period)\nseed: found -1, expected >= 0\n"
    )
    assert said.out == ""
    assert [file.name for file in tmp_path.iterdir()] == ["project"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--config-dir", "nowhere"], "--config-dir: found nowhere"),
        (["--experimental-rerun", "x.pickle"], "--experimental-rerun: it reads a pickle"),
        (["-m", "sync.perid=1,2"], "sync.perid: unknown key"),
        (["-m", "seed=[1"], "seed=[1: expected key=value"),
        (["-m", "sync=allreduce,nothing"], "sync: found 'nothing'"),
    ],
)
def test_wrong_flags_and_sweeps_are_refused(
    arguments: list[str],
    message: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert type_in(monkeypatch, project, *arguments) == 2
    assert message in capsys.readouterr().err


def test_python_train_py_becomes_torchrun(project: Path, tmp_path: Path) -> None:
    """From another directory; the code of the rank that failed is not flattened to 1, and one rank tells why."""
    command = [sys.executable, str(project / "train.py"), "happens=data", "hydra.run.dir='out/a=1,b'"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 3
    assert run.stderr.count("train.idx: missing") == 1
    assert "Traceback" not in run.stderr
    status = json.loads((tmp_path / "out" / "a=1,b" / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("failed", "train.idx: missing")


# Under torchrun


@pytest.mark.exhaustive
def test_a_restart_continues_in_the_same_directory(project: Path, tmp_path: Path) -> None:
    """Also: three groups in a row in each attempt, on the one store that outlives them."""
    run = torchrun("--nproc_per_node=2", "--max-restarts=1", project / "train.py", "happens=killed", "seed=5")
    assert run.returncode == 0, run.stderr
    (directory,) = (tmp_path / "outputs").iterdir()
    lines = [line for line in run.stdout.splitlines() if line.startswith("trained")]
    assert sorted(lines) == [f"trained 1 {rank} 2 {directory}" for rank in (0, 1)]
    assert yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text()) == ["happens=killed", "seed=5"]
    assert not (tmp_path / ".hydra").exists()


def test_ranks_refuse_with_one_voice(project: Path, tmp_path: Path) -> None:
    run = torchrun("--nproc_per_node=2", project / "train.py", "seed=-1", "sync.perid=1")
    assert run.returncode == 1
    assert run.stderr.count("seed: found -1, expected >= 0") == 1
    assert run.stderr.count("sync.perid: unknown key") == 1
    assert "exitcode  : 2" in run.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.exhaustive
def test_a_sweep_under_torchrun_uses_as_many_ranks(project: Path, tmp_path: Path) -> None:
    run = torchrun("--nproc_per_node=1", project / "train.py", "-m", "seed=-1,4")
    assert run.returncode == 1
    assert run.stderr.count("job 0 (seed=-1) failed: seed: found -1, expected >= 0") == 2, "at once, and at the end"
    directory = tmp_path / "multirun" / "1"
    assert f"trained 0 0 1 {directory}" in run.stdout.splitlines()
    assert yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text()) == ["seed=4"]
    assert json.loads((tmp_path / "multirun" / "0" / "status.json").read_text())["status"] == "failed"
