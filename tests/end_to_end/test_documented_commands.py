"""The commands of README and of the other pages, typed as they stand there, one after the other.

Only what a person has to put in is put in: `<time>`, and the number of epochs in a copy of conf/. Commands that need a
cluster, the network or a package that is not a dependency are proven elsewhere: tests/project/promised.py.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from documents import ROOT, commands, rows
from forked_torchrun import run
from stub_programs import program

from ddp_agent.outputs.run_files import _FILES, _FOLDERS

NEEDED = {
    "pip ": "the network", "docker": "a registry", "kubectl": "a cluster", "sed": "a cluster", "sbatch": "Slurm",
    "NNODES": "several machines", "RUN_DIR": "several machines or Slurm", "tensorboard": "to be stopped by hand",
    "launch/elastic.sh --rep": "minutes: tests/faults/test_faults_elastic.py",
}  # fmt: skip


def why_not(command: str) -> str | None:
    """Return why a command is not run here, or None."""
    if found := [reason for start, reason in NEEDED.items() if command.startswith(start)]:
        return found[0]
    if "submitit" in command or "<folder>" in command:
        return "Slurm" if "submitit" in command else "data of one's own"
    if folder := re.search(r"data_root=(/\S+)", command):
        return None if Path(folder[1]).is_dir() else f"{folder[1]}"
    if command.startswith("sudo"):
        return None if os.geteuid() == 0 and shutil.which("ip") else "root and iproute2"
    if "elastic" in command and importlib.util.find_spec("torchft") is None:
        return "torchft"
    return None


class Project:
    """A copy of this project in which a person types. `sudo` is the root that types it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "conf", folder / "conf")
        config = folder / "conf" / "config.yaml"
        config.write_text(re.sub(r"^epochs: 30 ", "epochs: 6 ", config.read_text(), flags=re.M))
        shutil.copy(ROOT / "train.py", folder)
        for name in ("ddp_agent", "launch"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "bin").mkdir()
        program(folder / "bin", "sudo", '#!/bin/sh\nexec "$@"\n')
        program(folder / "bin", "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        program(folder / "bin", "torchrun", f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')

    def type(self, command: str) -> str:
        """Run a command. Return its output."""
        for kind in ("outputs", "multirun"):
            made = sorted((self.folder / kind).glob("*"), key=lambda path: path.stat().st_mtime)
            finished = [path for path in made if kind == "multirun" or (path / "model.json").is_file()]
            if f"{kind}/<time>" in command:
                wanted = finished[-1] if kind == "multirun" else finished[0]
                command = command.replace(f"{kind}/<time>", f"{kind}/{wanted.name}")
        if command.startswith("launch/check.sh") and "device=" not in command:
            command += " device=cpu"  # as the page says
        env = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(self.folder)}
        env = {name: value for name, value in env.items() if not name.startswith(("DDP_AGENT_", "HYDRA_"))}
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=env, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
        assert "Traceback" not in done.stdout, f"{command}\n{done.stdout[-3000:]}"
        return done.stdout


def type_all(project: Project, document: str) -> dict[str, str]:
    said = {}
    for command in commands(document):
        began = time.monotonic()
        if reason := why_not(command):
            print(f"not run, needs {reason}: {command}")
        else:
            said[command] = project.type(command)
            print(f"{time.monotonic() - began:.0f} s: {command}")
    return said


@pytest.mark.exhaustive
def test_the_commands_of_readme_run_as_they_stand(tmp_path: Path) -> None:
    project = Project(tmp_path)
    said = type_all(project, "README.md")
    assert len(said) >= 11
    (plan,) = [output for command, output in said.items() if "ddp_agent.plan" in command]
    assert plan.startswith("Answer\n  - ") and "no data" not in plan
    sweeps = sorted((tmp_path / "multirun").iterdir())
    assert len(sweeps) == 2 and all(len(list(sweep.glob("*/summary.json"))) == 12 for sweep in sweeps)
    assert len(list((sweeps[0] / "tensorboard").iterdir())) == 12
    assert list((tmp_path / "outputs").glob("*/trace.rank0.json.gz"))


@pytest.mark.exhaustive
def test_the_commands_of_the_other_pages_run_as_they_stand(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.type("python train.py")
    reliability = type_all(project, "docs/reliability.md")
    assert len(reliability) == 4
    said = type_all(project, "docs/elastic.md") | type_all(project, "launch/README.md")
    assert said["launch/check.sh"].endswith("All is well: a run can start.\n")


def documented_files() -> dict[str, str]:
    """Names of README's table, each without its slash, as a person reads them."""
    names = [cells[0] for head, cells in rows("README.md") if head == "file"]
    return {name.strip("` ").rstrip("/"): name for cell in names for name in cell.split(", ")}


def test_a_run_leaves_the_files_that_readme_names(tmp_path: Path) -> None:
    """A language model with averaged weights leaves all of them, but for a sweep's and the profiler's."""
    (tmp_path / "input.txt").write_text("to be or not to be, that is the question\n" * 60)
    small = ("model=gpt", "model.layers=1", "model.width=16", "model.heads=2", "dataset.context=8", "dataset.sample=20")
    typed = ("dataset=char_lm", f"data_root={tmp_path}", *small, "ema_decay=0.9", "device=cpu")
    sized = ("max_steps=2", "global_batch_size=8")
    outcome = run(tmp_path / "made", 2, [*typed, *sized])
    assert outcome.codes == [[0, 0]], outcome.stderr
    found, named = {path.name for path in outcome.run_dir.iterdir()}, set(documented_files())
    assert found - named == set()
    missing = named - found
    assert missing <= {"job.json", "trace.rank0.json.gz", "train.rank1.log"}, "that one only where rank 1 had a warning"


def test_every_file_that_a_run_may_write_is_named() -> None:
    named = documented_files()
    assert set(_FOLDERS) <= set(named)
    assert [name for name in named if name not in _FOLDERS and not _FILES.fullmatch(name)] == []
