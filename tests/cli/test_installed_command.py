"""`ddp-agent`: the same as train.py and the commands beside it, from any folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_agent import __main__ as command
from ddp_agent import __version__
from ddp_agent.cli.program import MODULE, Program
from ddp_agent.config import shipped
from ddp_agent.config.shipped import conf_folder

ROOT = Path(__file__).parents[2]


def ddp_agent(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m ddp_agent` in an empty folder, as the installed command does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "ddp_agent", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("started", "words"),
    [
        ("/env/bin/ddp-agent", ("/env/bin/ddp-agent", "train")),
        ("/env/lib/ddp_agent/__main__.py", MODULE),
    ],
)
def test_ranks_start_as_the_command_did(
    started: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [started, "train"])
    monkeypatch.chdir(tmp_path)
    program = Program.command()
    assert (program.words, program.folder) == (words, tmp_path)


def test_a_script_is_started_again_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["there/train.py", "seed=1"])
    monkeypatch.chdir(tmp_path)
    program = Program.script()
    assert (program.words, program.folder) == ((str(tmp_path / "there" / "train.py"),), tmp_path / "there")
    assert (program.typed, program.under_torchrun) == ("python train.py", "train.py")


def test_configs_are_those_of_the_checkout_or_else_of_the_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert conf_folder() == ROOT / "conf"
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "ddp_agent")
    (tmp_path / "conf").mkdir()  # of another package, beside this one in site-packages
    (tmp_path / "ddp_agent" / "conf").mkdir(parents=True)
    assert conf_folder() == tmp_path / "ddp_agent" / "conf"


def test_help_and_configs_are_shown_in_any_folder(tmp_path: Path) -> None:
    shown = ddp_agent(tmp_path, "train", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "  ddp-agent train -m sync=" in shown.stdout
    assert "  torchrun --standalone --nproc_per_node=2 -m ddp_agent train sync=" in shown.stdout
    assert "train.py" not in shown.stdout
    shown = ddp_agent(tmp_path, "train", "--cfg", "job", "sync=local_sgd", "sync.period=7")
    assert "period: 7" in shown.stdout, shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_trains_in_an_empty_folder(tmp_path: Path) -> None:
    ran = ddp_agent(tmp_path, "train", "sync=local_sgd", "max_steps=3", "device=cpu", "run_name=here")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "outputs" / "here" / "summary.json").is_file()
    ran = ddp_agent(tmp_path, "checkpoint", "list", "outputs/here")
    assert (ran.returncode, ran.stdout.partition(" ")[0]) == (0, "step-00000003"), ran.stderr


@pytest.mark.exhaustive
def test_a_sweep_and_its_report(tmp_path: Path) -> None:
    typed = ["sync=local_sgd,diloco", "max_steps=3", "device=cpu", "nproc_per_node=1", "hydra.sweep.dir=sweep"]
    ran = ddp_agent(tmp_path, "sweep", *typed)
    assert ran.returncode == 0, ran.stderr
    assert [(tmp_path / "sweep" / job / "summary.json").is_file() for job in "01"] == [True, True]
    ran = ddp_agent(tmp_path, "report", "sweep")
    assert (ran.returncode, (tmp_path / "sweep" / "report" / "index.html").is_file()) == (0, True), ran.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--version"], 0, f"ddp-agent {__version__}"),
        (["--help"], 0, "\n  sweep  "),
        ([], 2, "the following arguments are required: COMMAND"),
        (["trian"], 2, "invalid choice: 'trian'"),
        (["report"], 2, "the following arguments are required: DIR"),
        (["plan", "--help"], 0, "--rate"),
        (["checkpoint", "--help"], 0, "verify"),
        (["netlab", "--help"], 0, "usage: ddp-agent netlab"),
        (["netlab", "--nodes", "1"], 2, "found '1', expected 2 to 254"),
    ],
)
def test_each_command_is_found(
    arguments: list[str],
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["ddp-agent", *arguments])
    try:
        found = command.main()
    except SystemExit as stop:
        found = int(stop.code or 0)
    shown = capsys.readouterr()
    assert found == code
    assert text in shown.out + shown.err
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(), "a process that lives on hears Ctrl-C"
