"""A real sweep of one job: nothing that it leaves holds a secret, and nothing of it listens outside of loopback."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddp_agent.distributed.ports import Port, open_ports

ROOT = Path(__file__).parents[2]
CANARY = "canary-bird"
THEIRS = """
import logging
import os
import warnings
from dataclasses import dataclass

from ddp_agent.data.task import Task
from ddp_agent.data.datasets.digits import Digits
from ddp_agent.models.mlp import MLP


@dataclass(kw_only=True)
class Guarded(Digits):
    api_token: str

    def load(self) -> Task:
        assert self.api_token == "canary-bird-1"
        return super().load()


class Net(MLP):
    def __init__(self, *, input_shape: tuple[int, ...], outputs: int, hidden: tuple[int, ...],
                 token: str, note: str, hub: dict) -> None:
        assert token == note == os.environ["HF_TOKEN"]
        assert hub == {"password": "canary-bird-3", "url": "https://me:canary-bird-4@a.org/?x=canary-bird-6"}
        # Before any log of the run is set up.
        print("printed", token)
        logging.getLogger("theirs").error("logged %s", hub)
        warnings.warn(f"warned {token}")
        super().__init__(input_shape=input_shape, outputs=outputs, hidden=hidden)
        self.token = token

    def forward(self, inputs):
        if self.token:
            logging.getLogger("theirs").warning("401 for %s", self.token)
            self.token = ""
        return super().forward(inputs)
"""

(EXAMPLE,) = re.findall(r"`python train\.py ([^`]*HF_TOKEN[^`]*)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
TYPED = [
    "-m",
    *shlex.split(EXAMPLE.replace("\n", " ")),
    "dataset.name='mypkg:Guarded'",
    f"+dataset.api_token={CANARY}-1",
    "+model.note='${oc.env:HF_TOKEN}'",
    f"+model.hub={{password:{CANARY}-3,url:'https://me:{CANARY}-4@a.org/?x={CANARY}-6'}}",
    "hydra.sweep.subdir='${hydra.job.override_dirname}'",
    "model.hidden=[8]",
    "max_steps=100",
    "log_every=1",
    "nproc_per_node=2",
    "device=cpu",
    "seed=1",
]


def children(process: int) -> list[int]:
    """All processes below one, as far as they can be seen at this moment."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_leaves_no_secret_and_listens_on_loopback_alone(tmp_path: Path) -> None:
    (tmp_path / "mypkg.py").write_text(THEIRS)
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        "HF_TOKEN": f"{CANARY}-2",
        "PASSWORD_OF_THE_MACHINE": f"{CANARY}-5",
    }
    ports: dict[int, set[Port]] = {}
    with (tmp_path / "said").open("w+b") as said:
        command = [sys.executable, str(ROOT / "train.py"), *TYPED]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 300
            while process.poll() is None and time.monotonic() < deadline:
                for one in children(process.pid):
                    ports.setdefault(one, set()).update(open_ports(one))
                time.sleep(0.3)  # looking costs more than what is looked at
        finally:
            process.terminate()
            code = process.wait(60)
        said.seek(0)
        console = said.read().decode()
    assert code == 0, console

    listeners = {number: found for number, found in ports.items() if found}
    assert len(listeners) == 3, "torchrun with its store and two ranks with gloo's sockets"
    assert all(port.loopback for found in listeners.values() for port in found)

    (sweep,) = (tmp_path / "multirun").iterdir()
    (run,) = [status.parent for status in sweep.rglob("status.json")]
    assert "model.hidden=[8]" in str(run), "the overrides that are no secrets name the directory"
    assert CANARY not in "".join(str(path) for path in sweep.rglob("*"))
    assert json.loads((run / "status.json").read_text())["status"] == "finished", console
    kept = {".hydra/config.yaml", ".hydra/overrides.yaml", "train.log", "job.json", "summary.json", "model.json"}
    names = {str(file.relative_to(run)) for file in run.rglob("*")}
    assert kept <= names and (sweep / "multirun.yaml").is_file()
    assert any(name.startswith("tensorboard/events") for name in names)
    telling = [str(file) for file in sweep.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    assert telling == []
    assert CANARY not in console
    for said_by_the_constructor in ("printed <redacted>", "logged {'password': '<redacted>'", "warned <redacted>"):
        assert said_by_the_constructor in console
    assert "+model.note='${oc.env:HF_TOKEN}'" in json.loads((run / "job.json").read_text())["overrides"]
    assert "token: ${oc.env:HF_TOKEN}" in (run / ".hydra" / "config.yaml").read_text()
    assert "+dataset.api_token=<redacted>" in (run / ".hydra" / "overrides.yaml").read_text()
    log = (run / "train.log").read_text()
    assert "401 for <redacted>" in log
    assert "Open ports: torchrun " in log and "all interfaces" not in log
