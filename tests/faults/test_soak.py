"""The same many times over: `pytest -m soak -s`, whose lines are summarised in docs/reliability.md."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_points import Fault
from forked_torchrun import Outcome, run
from held import Held, assert_level, least
from test_faults_torchrun import ROOT, left_of, outcome, project, start
from whole_runs import EVERY_FIVE, MODES, SMALL, STEPS, Wholes, checkpoints

pytestmark = pytest.mark.soak
__all__ = ["project"]  # a fixture

CASES = [("allreduce", 2), ("allreduce", 3), ("local_sgd", 2), ("diloco", 2), ("streaming_diloco", 2)]
IN_A_SAVE = ["half a file", "before the manifest", "deleting the old"]
RUNS = 10
NOTICED_S = 10.0
SLOW = Fault("step", "slow", rank=None)


def somewhere(mode: str, size: int, number: int) -> Fault:
    """Another rank, place and moment each time, in a step, an averaging or a save; the same in every session."""
    draw = random.Random(f"{mode} {size} {number}")
    step, point = draw.randrange(2, STEPS - 8), draw.choice(["step", "averaging", "averaging", *IN_A_SAVE])
    if point == "half a file":
        return Fault(point, "write half", draw.randrange(size), step)
    rank = 0 if point in IN_A_SAVE else draw.randrange(size)  # the rest of a save is rank 0's work
    return Fault(point, "SIGKILL", rank, step, after_s=draw.choice([0.0, draw.uniform(0, 0.03)]))


def assert_recovered(killed: Outcome, mode: str, size: int, wholes: Wholes) -> None:
    assert killed.status["status"] == "finished"
    assert checkpoints(killed.run_dir)[-1] == STEPS
    wholes.assert_same_end(killed, mode, size)


def tell(how: str, mode: str, size: int, fault: Fault, run_dir: Path, **seconds: float) -> None:
    """A line of the log. `step`: when the fault was armed; `resumed`: after which step the next attempt began."""
    resumed = json.loads((run_dir / "attempts.json").read_text())[1]["from_step"]
    found = {"how": how, "mode": mode, "ranks": size, "point": fault.point, "step": fault.step, "resumed": resumed}
    print("\n" + json.dumps(found | seconds), flush=True)


@pytest.mark.parametrize("number", range(RUNS))
@pytest.mark.parametrize(("mode", "size"), CASES)
def test_kill_and_restart(mode: str, size: int, number: int, tmp_path: Path, wholes: Wholes) -> None:
    fault = somewhere(mode, size, number)
    killed = run(tmp_path, size, [*SMALL, *MODES[mode], *EVERY_FIVE], [SLOW, fault], max_restarts=3)
    assert killed.codes[0][fault.rank or 0] == -9, killed.stderr
    assert killed.codes[-1] == [0] * size, killed.stderr
    assert killed.fallout_s[0] < NOTICED_S
    assert "terminate called" not in killed.stderr
    assert "Traceback" not in killed.stderr
    assert_recovered(killed, mode, size, wholes)
    tell("forked", mode, size, fault, killed.run_dir, down_s=round(killed.fallout_s[0], 2))


@pytest.mark.parametrize("number", range(RUNS))
@pytest.mark.parametrize(("mode", "size"), CASES)
def test_kill_and_restart_by_torchrun(mode: str, size: int, number: int, project: Path, wholes: Wholes) -> None:
    """launch/local.sh with the real torchrun, and its restart."""
    fault = somewhere(mode, size, 100 + number)
    typed = ["--nproc", str(size), "--max-restarts", "3", *SMALL, *MODES[mode], *EVERY_FIVE, "run_name=run"]
    began = time.monotonic()
    process = start(project, "launch/local.sh", *typed, faults=[SLOW, fault])
    said = process.communicate(timeout=180)[0]
    seconds = time.monotonic() - began
    assert process.returncode == 0, said
    assert "terminate called" not in said
    assert f"rank {fault.rank}: died without a word" in said, said
    assert left_of(project) == []
    assert_recovered(outcome(project), mode, size, wholes)
    tell("torchrun", mode, size, fault, outcome(project).run_dir, whole_s=round(seconds, 1))


def test_a_sweep_of_20_jobs_grows_nothing(tmp_path: Path) -> None:
    """Only the driving process counts: its jobs are processes of their own, and leave none behind."""
    mark = f"sweep {tmp_path}"
    command = [sys.executable, str(ROOT / "train.py"), "-m", "nproc_per_node=1", "sync=independent", *SMALL]
    sweep = f"hydra.sweep.dir='{tmp_path / 'sweep'}'"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RUN_OF_TEST": mark}
    held: dict[int, list[Held]] = {}
    with subprocess.Popen([*command, f"seed={','.join(map(str, range(20)))}", sweep], env=environment) as driver:
        while driver.poll() is None:
            done = len(list(tmp_path.glob("sweep/*/summary.json")))
            held.setdefault(done, []).extend(Held.by(driver.pid))
            time.sleep(0.2)
    assert driver.returncode == 0
    assert len(list(tmp_path.glob("sweep/*/summary.json"))) == 20
    early, late = ([it for done in part for it in held.get(done, [])] for part in (range(2, 6), range(15, 20)))
    assert_level(early, late)
    print("\n", least(early), least(late), flush=True)
