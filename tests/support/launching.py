"""A small project with configs and a script of its own, for tests about what a command line starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from ddp_agent.cli import LaunchContext
from ddp_agent.cli.command import main
from ddp_agent.cli.composition import NPROC_PER_NODE, RUN_DIR, RUN_TIME, Configs
from ddp_agent.errors import ConfigError

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


@pytest.fixture
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


def type_in(monkeypatch: pytest.MonkeyPatch, project: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(project / "train.py"), *arguments])

    def check(context: LaunchContext) -> None:
        if context.cfg["seed"] < 0:
            raise ConfigError("seed: found -1, expected >= 0")

    return main(lambda context, directory: 0, check=check, conf=project / "conf")
