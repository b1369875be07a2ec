"""The netlab command line: what it refuses, and in which words."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from netlab_runs import NETLAB, call, needs_namespaces

from ddp_agent.netlab.command import check, installed_script
from ddp_agent.netlab.processes import RefusedError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--nodes 1 --rate 1gbit -- train.py", "argument --nodes: found '1', expected 2 to 254"),
        ("--nodes 255 --rate 1gbit -- train.py", "argument --nodes: found '255', expected 2 to 254"),
        ("--nodes two --rate 1gbit -- train.py", "argument --nodes: found 'two', expected 2 to 254"),
        ("--nodes 2 --rate 0mbit -- train.py", "argument --rate: found '0mbit', expected 8kbit to 100gbit"),
        (f"--nodes 2 --rate {'9' * 400}mbit -- train.py", "argument --rate: found '999"),
        ("--nodes 2 --rate=-1mbit -- train.py", "argument --rate: found '-1mbit', expected 8kbit to 100gbit"),
        ("--nodes 2 --rate 101gbit -- train.py", "argument --rate: found '101gbit', expected 8kbit to 100gbit"),
        ("--nodes 2 --rate 100mbps -- train.py", "argument --rate: found '100mbps', expected 8kbit to 100gbit"),
        ("--nodes 2 -- train.py", "the following arguments are required: --rate"),
        ("--nodes 2 --rate 1gbit --nproc-per-node 0 -- train.py", "argument --nproc-per-node: found '0'"),
        ("--nodes 2 --rate 1gbit", "no command: expected -- and a script"),
        ("--nodes 2 --rate 1gbit train.py", "unrecognized arguments: train.py"),
        ("--nodes 2 --rate 1gbit -- trian.py", "trian.py: no such file"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(arguments: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    ran = call(*arguments.split(), cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"netlab: {message}")
    assert ran.stderr.count("\n") == 1


def test_a_lab_in_a_lab_is_refused() -> None:
    ran = call("--nodes", 2, "--rate", "1gbit", "--", __file__, env=os.environ | {"DDP_AGENT_LINK": "eth0"})
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "already inside" in ran.stderr


@needs_namespaces
def test_a_user_who_may_not_make_networks_is_told_what_would_help() -> None:
    """The limits are those of a user namespace made for this."""
    forbid = "echo 0 > /proc/sys/user/max_net_namespaces"
    command = f"{sys.executable} {NETLAB} --nodes 2 --rate 1gbit -- {__file__}"
    ran = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", f"{forbid} && {command}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "may not make network namespaces" in ran.stderr and "run it as root" in ran.stderr


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("ip", "tc") else f"/bin/{name}")
    with pytest.raises(RefusedError, match="missing: ip, tc; install iproute2"):
        check([str(ROOT / "train.py")])


def test_a_command_that_pip_installed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, first_line in (("made-up", f"#!{sys.executable}"), ("shell-script", "#!/bin/sh")):
        (tmp_path / name).write_text(f"{first_line}\n")
        (tmp_path / name).chmod(0o755)
    assert installed_script("made-up") == str(tmp_path / "made-up")
    assert installed_script("shell-script") is installed_script("no-such-command") is None


def test_the_interpreter_needs_no_packages(tmp_path: Path) -> None:
    """`sudo launch/netlab.py` takes root's: here one that sees neither site-packages nor PYTHONPATH."""
    ran = subprocess.run([sys.executable, "-I", "-S", NETLAB, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "--nodes N --rate RATE" in ran.stdout
