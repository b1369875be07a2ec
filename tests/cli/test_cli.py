"""A command line becomes the right processes, one run directory and one message."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ddp_agent.cli import LaunchContext, rank_process, relaunch, sweep
from ddp_agent.cli.command import main
from ddp_agent.cli.composition import NPROC_PER_NODE, RUN_DIR, RUN_TIME, Configs
from ddp_agent.distributed.torchrun_env import EARLIER_ATTEMPTS, TorchrunEnvironment
from ddp_agent.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[2]

CONFIGS = {
    "config.yaml": """
        defaults: [{sync: local_sgd}, _self_, {override hydra/job_logging: none}, {override hydra/hydra_logging: none}]
        run_name: ${run_time:}
        seed: 0
        device: cpu
        resume: null
        nproc_per_node: null
        happens: null
        api_token: null
        hydra:
          job: {name: train, chdir: false}
          run: {dir: "outputs/${run_name}"}
          sweep: {dir: multirun, subdir: "${hydra.job.num}"}
        """,
    "sync/local_sgd.yaml": "period: 16",
    "sync/allreduce.yaml": "hook: null",
    "experiment/small.yaml": """
        # @package _global_
        defaults: [{override /sync: allreduce}]
        seed: 7
        """,
}

# Takes the place of train.py where a test is about launching: it trains nothing and imports only what it needs.
TRAIN = """
import logging, os, signal, sys, time
from pathlib import Path
from ddp_agent.errors import ConfigError, DataError
from ddp_agent.cli import leave, main

def check(context):
    if context.cfg["seed"] < 0:
        raise ConfigError(f"seed: found {context.cfg['seed']}, expected >= 0")

def train(context, directory):
    import torch
    import torch.distributed as dist
    from ddp_agent.distributed import process_group as runtime

    happens = context.cfg["happens"]
    if happens == "data":
        raise DataError("train.idx: missing")
    for group in range(3):
        with runtime.start("cpu", timeout_s=30) as ranks:
            total = torch.ones(1)
            dist.all_reduce(total)
            if happens == "killed" and context.attempt == 0:
                if ranks.rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
    line = f"trained {context.attempt} {ranks.rank} {int(total)} {context.run_dir}\\n"
    os.write(1, line.encode())  # in one piece: ranks share the pipe
    if ranks.rank == 0:
        directory.write_summary({"best_metric": 0.5})

leave(main(train, check=check, conf=Path(__file__).parent / "conf"))
"""


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outputs go below tmp_path, and what launching puts into the environment is forgotten."""
    monkeypatch.chdir(tmp_path)
    for name in (RUN_DIR, RUN_TIME, NPROC_PER_NODE, "DDP_AGENT_FAILURES", "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, text in CONFIGS.items():
        file = folder / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(line.removeprefix(" " * 8) for line in text.splitlines()))
    (folder / "train.py").write_text(TRAIN)
    return folder


@pytest.fixture
def configs(project: Path) -> Configs:
    return Configs(folder=project / "conf", name="config")


def accept(context: LaunchContext) -> None:
    pass


def two_ranks(cfg: object) -> int:
    return 2


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# Composing


def test_the_context_is_plain_and_resolved(configs: Configs, tmp_path: Path) -> None:
    composed = configs.compose(["+experiment=small", "run_name=a", "hydra.verbose=false"])
    context = composed.checked(accept, two_ranks)
    assert context.cfg == {
        "sync": {"hook": None}, "run_name": "a", "seed": 7, "device": "cpu", "resume": None,
        "nproc_per_node": None, "happens": None, "api_token": None,
    }  # fmt: skip
    assert type(context.cfg["sync"]) is dict
    assert context.choices == {"sync": "allreduce", "experiment": "small"}
    assert context.overrides == ["+experiment=small", "run_name=a"]
    assert (context.run_dir, context.world_size) == (tmp_path / "outputs" / "a", 2)


def test_the_run_directory_may_come_from_the_sweep(configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_DIR, "/sweep/seed=0,lr=1")
    assert configs.compose([]).checked(accept, two_ranks).run_dir == Path("/sweep/seed=0,lr=1")


def test_the_start_is_one_moment(configs: Configs) -> None:
    runs = [configs.compose([]).checked(accept, two_ranks) for _ in range(2)]
    assert runs[0].run_dir == runs[1].run_dir
    assert runs[0].cfg["run_name"] == os.environ[RUN_TIME]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=1", "sed: unknown key, did you mean seed? (known: "),
        ("sync.perid=2", "sync.perid: unknown key, did you mean period? (known: period)"),
        ("snc.period=2", "snc: unknown key, did you mean sync?"),
        ("seed.x=2", "seed.x: unknown key, seed is a value"),
        ("sync=localsgd", "sync: found 'localsgd', did you mean local_sgd? (known: allreduce, local_sgd)"),
        ("+experiment=big", "experiment: found 'big' (known: small)"),
        ("seed=1,2", "seed=1,2: several values; start a run for each with -m, or put a list in brackets"),
        ("seed", "seed: expected key=value"),
        ("seed=[1", "seed=[1: expected key=value"),
        ("~nothing", "~nothing: Could not delete from config"),
        ("seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
        ("seed=???", "seed: Missing mandatory value"),
        ("hydra.run.dir=${nothing}", "hydra.run.dir: Interpolation key 'nothing' not found"),
        ("hydra.mode=MULTIRUN", "hydra.mode: found MULTIRUN"),
    ],
)
def test_a_wrong_override_is_explained_in_one_line(configs: Configs, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configs.compose([override]).checked(accept, two_ranks)
    assert len(refused.value.problems) == 1
    assert refused.value.problems[0].startswith(message)
    assert "\n" not in refused.value.problems[0]


def refuse_seed(context: LaunchContext) -> None:
    raise ConfigError([f"seed: found {context.cfg['seed']}"])


def test_all_problems_are_told_at_once(configs: Configs) -> None:
    typed = ["sync.period=4", "sync.perid=3", "seed=-1", "sed=1"]
    with pytest.raises(ConfigError) as refused:
        configs.compose(typed).checked(refuse_seed, two_ranks)
    keys = [problem.partition(":")[0] for problem in refused.value.problems]
    assert sorted(keys) == ["sed", "seed", "sync.perid"]


def test_what_follows_from_a_wrong_choice_is_not_told(configs: Configs) -> None:
    with pytest.raises(ConfigError) as refused:
        configs.compose(["sync=nothing", "seed=-1"]).checked(refuse_seed, two_ranks)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["sync"]


def refuse_checkpoint(context: LaunchContext) -> None:
    raise CheckpointError("resume: /nowhere holds no complete checkpoint")


def test_a_refused_checkpoint_does_not_hide_what_was_mistyped(configs: Configs) -> None:
    with pytest.raises(ConfigError) as refused:
        configs.compose(["sed=1"]).checked(refuse_checkpoint, two_ranks)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["sed", "resume"]
    with pytest.raises(CheckpointError):
        configs.compose([]).checked(refuse_checkpoint, two_ranks)


def test_a_config_that_does_not_parse_is_refused(configs: Configs) -> None:
    (configs.folder / "experiment" / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"\+experiment=broken"):
        configs.compose(["+experiment=broken"]).checked(accept, two_ranks)


def test_saved_configs_are_unresolved_and_without_secrets(configs: Configs, tmp_path: Path) -> None:
    composed = configs.compose(["seed=3", "api_token=hunter2"])
    composed.checked(accept, two_ranks)
    composed.save(tmp_path)
    saved = {file.stem: yaml.safe_load(file.read_text()) for file in (tmp_path / ".hydra").iterdir()}
    assert saved["config"]["run_name"] == "${run_time:}"
    assert saved["config"]["seed"] == 3
    assert saved["overrides"][0] == "seed=3"
    assert saved["hydra"]["hydra"]["runtime"]["output_dir"] == str(tmp_path)
    assert not any("hunter2" in file.read_text() for file in (tmp_path / ".hydra").iterdir())
    assert "hydra" not in OmegaConf.load(tmp_path / ".hydra" / "config.yaml")


def test_another_folder_of_configs_is_searched(project: Path, tmp_path: Path) -> None:
    extra = tmp_path / "my configs"
    (extra / "experiment").mkdir(parents=True)
    (extra / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 99\n")
    configs = Configs(folder=project / "conf", name="config", extra_folder=extra)
    assert configs.compose(["+experiment=mine"]).checked(accept, two_ranks).cfg["seed"] == 99


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
        ({relaunch.NODES: "2"}, []),  # the rest torchrun reads from PET_NODE_RANK and so on
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
    assert said == [*expected, f"--signals-to-handle={relaunch.SIGNALS}", "--nproc_per_node=3", "t.py"]
    assert worlds == [3 * int(environment.get(relaunch.NODES, 1))]


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


def type_in(monkeypatch: pytest.MonkeyPatch, project: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(project / "train.py"), *arguments])

    def check(context: LaunchContext) -> None:
        if context.cfg["seed"] < 0:
            raise ConfigError("seed: found -1, expected >= 0")

    return main(lambda context, directory: 0, check=check, conf=project / "conf")


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


def test_a_sweep_on_several_nodes_is_refused_with_the_command_to_use() -> None:
    environment = TorchrunEnvironment(world_size=8, local_world_size=4)
    with pytest.raises(ConfigError, match=r"found 2 nodes") as refused:
        sweep.refuse_several_nodes(environment, ["seed=0,1", "run_name=a b"])
    assert "python train.py -m nproc_per_node=4 seed=0,1 'run_name=a b'" in str(refused.value)
    sweep.refuse_several_nodes(TorchrunEnvironment(world_size=4, local_world_size=4), [])


@pytest.mark.parametrize(("node_rank", "code"), [(0, 0), (1, 2)])
def test_only_rank_0_drives_a_sweep(
    node_rank: int, code: int, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        TorchrunEnvironment,
        "read",
        lambda: TorchrunEnvironment(rank=1, world_size=4, local_world_size=2, node_rank=node_rank),
    )
    monkeypatch.setattr("ddp_agent.cli.command.die_with_parent", lambda: None)
    assert type_in(monkeypatch, project, "-m", "seed=0,1") == code
    assert [file.name for file in tmp_path.iterdir()] == ["project"]


# Sweeps, with a job that is no torchrun

JOB = """
import json, os, sys
from pathlib import Path
run_dir = Path(os.environ["DDP_AGENT_RUN_DIR"])
report = {"argv": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ)}
(run_dir / "report.json").write_text(json.dumps(report))
if "seed=1" in sys.argv:
    (run_dir / "status.json").write_text(json.dumps({"status": "failed", "reason": "loss is nan"}))
    sys.exit(5)
if "seed=2" in sys.argv:
    sys.exit(1)
(run_dir / "summary.json").write_text(json.dumps({"best_metric": 0.25}))
"""


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    return [sys.executable, str(script)]


def sweep_over(configs: Configs, job: Sequence[str], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *overrides])
    return sweep.run(configs, job, overrides)


def test_each_job_is_told_its_directory_and_what_to_do(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "outer")
    monkeypatch.setenv(NPROC_PER_NODE, "3")
    monkeypatch.setenv(RUN_TIME, "the sweep's")
    code = sweep_over(
        configs,
        job,
        monkeypatch,
        "seed=3,4",
        "sync=glob(local*)",
        "run_name='a=1,b'",
        "hydra.sweep.subdir='${hydra.job.override_dirname}'",
    )
    assert code == 0
    for number, seed in enumerate((3, 4)):
        directory = tmp_path / "multirun" / f"run_name='a=1,b',seed={seed},sync=local_sgd"
        report = json.loads((directory / "report.json").read_text())
        assert sorted(report["argv"]) == [
            f"hydra.job.num={number}",
            "run_name='a=1,b'",
            f"seed={seed}",
            "sync=local_sgd",
        ]
        assert report["cwd"] == str(tmp_path)
        assert report["environment"][RUN_DIR] == str(directory)
        assert report["environment"][NPROC_PER_NODE] == "3"
        assert not {"RANK", "TORCHELASTIC_RUN_ID", RUN_TIME} & set(report["environment"])
        assert not (directory / "train.log").exists(), "Hydra's log would be in the way of ours"


def test_a_swept_mode_may_be_given_what_the_default_has_not(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert sweep_over(configs, job, monkeypatch, "sync=choice(local_sgd)", "sync.period=4", "seed=3") == 0
    assert json.loads((tmp_path / "multirun" / "0" / "report.json").read_text())["argv"] == [
        "sync=local_sgd",
        "sync.period=4",
        "seed=3",
        "hydra.job.num=0",
    ]
    with pytest.raises(ConfigError, match=r"sync\.perod"):
        sweep_over(configs, job, monkeypatch, "sync=choice(local_sgd)", "sync.perod=4")


def test_a_failed_job_is_told_and_the_others_run(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sweep_over(configs, job, monkeypatch, "seed=0,1,2,3") == 1
    said = capfd.readouterr().err
    for failure in ("job 1 (seed=1) failed: loss is nan", "job 2 (seed=2) failed: exit code 1"):
        assert said.count(failure) == 2, "at once, and at the end"
    assert "job 0" not in said
    assert "job 3" not in said
    assert (tmp_path / "multirun" / "3" / "summary.json").exists()


def reports(sweep_dir: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sweep_dir.glob("*/report.json")}


def test_an_interrupted_sweep_goes_on(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One job has finished, one was stopped, one had not begun."""
    sweep_dir = tmp_path / "multirun"
    assert sweep_over(configs, job, monkeypatch, "seed=0,3") == 0
    for name, state in (("0", "finished"), ("1", "running")):
        (sweep_dir / name / "status.json").write_text(json.dumps({"status": state}))
        (sweep_dir / name / "report.json").unlink()
    capfd.readouterr()
    assert sweep_over(configs, job, monkeypatch, "seed=0,3,4") == 0
    found = reports(sweep_dir)
    assert set(found) == {"1", "2"}
    assert [found[name]["environment"][EARLIER_ATTEMPTS] for name in ("1", "2")] == ["1", "0"]
    assert f"job 0 (seed=0): finished before, in {sweep_dir / '0'}" in capfd.readouterr().out


def test_another_sweeps_directory_is_not_taken(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sweep_over(configs, job, monkeypatch, "seed=0") == 0
    (tmp_path / "multirun" / "0" / "report.json").unlink()
    assert sweep_over(configs, job, monkeypatch, "seed=3") == 1
    assert not reports(tmp_path / "multirun")
    assert "holds a job of another sweep (seed=0)" in capfd.readouterr().err
    for damaged in ("{", '{"overrides": [true], "attempts": 2}'):
        (tmp_path / "multirun" / "0" / "job.json").write_text(damaged)
        assert sweep_over(configs, job, monkeypatch, "seed=0") == 1
        assert "job.json cannot be read" in capfd.readouterr().err


def test_a_sweeper_that_optimises_sees_the_best_metric(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    call = sweep.Job.__call__

    def listen(self: sweep.Job, cfg: Any) -> float | None:
        seen.append(call(self, cfg))
        return seen[-1]

    monkeypatch.setattr(sweep.Job, "__call__", listen)
    assert sweep_over(configs, job, monkeypatch, "seed=0") == 0
    assert seen == [0.25]


def test_optuna_finds_its_way(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install -e '.[optuna]'")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    assert sweep_over(configs, job, monkeypatch, *search, "hydra.sweeper.direction=maximize", "seed=range(3,9)") == 0
    assert set(reports(tmp_path / "multirun")) == {"0", "1", "2"}
    results = (tmp_path / "multirun" / "optimization_results.yaml").read_text()
    assert "best_value: 0.25" in results, "what the jobs' summaries say"


SLOW_JOB = """
import os, signal, sys, time
from pathlib import Path
run_dir = Path(os.environ["DDP_AGENT_RUN_DIR"])
def stop(*_):
    (run_dir / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(run_dir / "started").write_text(str(os.getpid()))
time.sleep(600)
"""

DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from pathlib import Path
from ddp_agent.cli import sweep
from ddp_agent.cli.composition import Configs
configs = Configs(folder=Path(sys.argv.pop(1)), name="config")
sys.exit(sweep.run(configs, [sys.executable, sys.argv.pop(1)], sys.argv[2:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_sweep_lets_its_job_save_and_starts_no_other(
    number: signal.Signals, code: int, configs: Configs, tmp_path: Path
) -> None:
    for name, text in (("job.py", SLOW_JOB), ("driver.py", DRIVER)):
        (tmp_path / name).write_text(text)
    command = [sys.executable, "driver.py", str(configs.folder), str(tmp_path / "job.py"), "-m", "seed=0,1"]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    first = tmp_path / "multirun" / "0"
    while not (first / "started").exists() or not (first / "started").read_text():
        assert driver.poll() is None
        time.sleep(0.02)
    driver.send_signal(number)
    assert driver.wait(timeout=60) in (code, -number)
    assert (first / "saved").exists(), "the job was told, and waited for"
    assert not (tmp_path / "multirun" / "1").exists()
