"""The supervisor of replicas leaves no process and no status behind that says "running"."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ddp_agent.elastic.supervisor import Supervisor


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[bytes]"]:
    """Replicas sleep, and the start of the second one meets a signal."""
    found: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def start(command: list[str], **named: Any) -> Any:
        found.append(original([sys.executable, "-c", "import time; time.sleep(600)"], **named))
        if len(found) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return found


def test_a_signal_that_meets_the_start_of_a_replica_ends_it_as_well(
    started: list["subprocess.Popen[bytes]"], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        (tmp_path / f"replica-{number}").mkdir()
        (tmp_path / f"replica-{number}" / "status.json").write_text('{"status": "running", "step": 3}')
    (tmp_path / "replica-1.txt").mkdir()  # its output cannot be kept
    supervisor = Supervisor(
        program=["train.py"], arguments=[], folder=tmp_path, numbers=[0, 1, 2], count=3,
        coordinator="127.0.0.1:1", max_restarts=3,
    )  # fmt: skip
    with capfd.disabled():
        assert supervisor.run() == -signal.SIGTERM
    assert [process.poll() for process in started] == [-signal.SIGTERM] * 3
    for number in range(3):
        status = json.loads((tmp_path / f"replica-{number}" / "status.json").read_text())
        assert (status["status"], status["reason"]) == ("failed", "its torchrun: ended by SIGTERM")
