"""`train.py --help` tells what there is, at once and from the code."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_agent.cli.composition import Configs
from ddp_agent.cli.sweep import _first_job
from ddp_agent.config import help_text
from ddp_agent.config.registry import definitions

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
FILES = [file for group in help_text.GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_choice_has_its_line(file: Path) -> None:
    section = help_text.text(CONF).split(f"\n{file.parent.name}=", 1)[1].split("\n\n", 1)[0]
    line = re.search(rf"^  {file.stem} +(\S.*)$", section, re.MULTILINE)
    assert line, "no line, or no description: the first line of the class's docstring"
    name = re.search(r"^name: (\w+)", file.read_text(), re.MULTILINE)
    assert name and line[1] == definitions(file.parent.name)[name[1]][1]


def test_every_class_can_be_chosen() -> None:
    for group in help_text.GROUPS:
        named = "\n".join(file.read_text() for file in (CONF / group).glob("*.yaml"))
        for name in definitions(group):
            assert re.search(rf"^name: {name}$", named, re.MULTILINE), f"no conf/{group}/*.yaml has `name: {name}`"


def test_the_examples_can_be_typed() -> None:
    examples = [
        shlex.split(line) for line in help_text.text(CONF).splitlines() if re.match(r"  (torchrun|python) ", line)
    ]
    assert len(examples) == 3
    for words in examples:
        overrides = [word for word in words[words.index("train.py") + 1 :] if word != "-m"]
        assert Configs(folder=CONF, name="config").compose(_first_job(overrides)).problems == ()


def test_help_is_ours_and_imports_nothing_heavy() -> None:
    shown = _run("-X", "importtime", str(ROOT / "train.py"), "--help")
    assert (shown.returncode, shown.stdout) == (0, help_text.text(CONF) + "\n")
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in shown.stderr.splitlines()}
    assert "hydra" in imported, "the list of imports is read wrongly"
    assert not imported & {"torch", "torchvision", "numpy", "matplotlib", "tensorboard"}


def test_hydra_s_own_flags_need_no_ranks(tmp_path: Path) -> None:
    shown = _run(str(ROOT / "train.py"), "--cfg", "job", "sync=local_sgd", "sync.period=7")
    assert shown.returncode == 0, shown.stderr
    assert "period: 7" in shown.stdout
    assert list(tmp_path.iterdir()) == []


def test_under_torchrun_one_rank_shows_it() -> None:
    ranks = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    shown = [_run(str(ROOT / "train.py"), "--help", RANK=rank, LOCAL_RANK=rank, **ranks) for rank in "01"]
    assert [process.returncode for process in shown] == [0, 0]
    assert shown[0].stdout == help_text.text(CONF) + "\n"
    assert shown[1].stdout == ""
