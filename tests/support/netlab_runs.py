"""Runs of launch/netlab.py, and whether this machine can build its network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import listen_to_ctrl_c

NETLAB = Path(__file__).parents[2] / "launch" / "netlab.py"


def why_not() -> str | None:
    if shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        return "needs ip and tc (package iproute2)"
    alone = [[], ["--user", "--map-root-user"]]
    tried = [subprocess.run(["unshare", *user, "--net", "true"], capture_output=True, check=False) for user in alone]
    return None if any(each.returncode == 0 for each in tried) else "needs root or user namespaces"


REASON = why_not()
needs_namespaces = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def start(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, str(NETLAB), *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": listen_to_ctrl_c}
    process: subprocess.Popen[str] = subprocess.Popen(command, text=True, **(pipes | options))
    return process


def call(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
