"""SIGTERM and its like: everything is saved, all ranks leave after the same step, and the run goes on from there."""

import signal
import time
from pathlib import Path

import pytest
from fault_points import Fault
from forked_torchrun import Outcome, Torchrun, run
from whole_runs import MODES, SMALL, STEPS, Wholes, checkpoints

pytestmark = pytest.mark.faults
SLOW = Fault("step", "slow", rank=None)


def assert_preempted(outcome: Outcome, asked: str) -> int:
    """The step after which all stopped."""
    assert set(outcome.codes[-1]) == {75}, outcome.stderr
    status = outcome.status
    assert status["status"] == "preempted"
    assert status["reason"].startswith(f"{asked}: stopped after step {status['step']} of {STEPS}")
    assert outcome.stderr.count(status["reason"]) == 1, "said once"
    assert "Traceback" not in outcome.stderr
    assert not (outcome.run_dir / "summary.json").exists()
    step: int = status["step"]
    assert checkpoints(outcome.run_dir)[-1] == step
    return step


def go_on(outcome: Outcome, folder: Path, size: int, mode: str) -> Outcome:
    return run(folder, size, [*SMALL, *MODES[mode], f"resume='{outcome.run_dir}'"])


@pytest.mark.parametrize("mode", ["allreduce", "local_sgd", "streaming_diloco"])
def test_one_rank_that_is_asked_stops_all_in_step(mode: str, tmp_path: Path, wholes: Wholes) -> None:
    """The stop comes inside a period, with a fragment in flight. The resumed run ends bit for bit the same."""
    outcome = run(tmp_path / "a", 2, [*SMALL, *MODES[mode]], [SLOW, Fault("step", "SIGTERM", 1, 11)])
    step = assert_preempted(outcome, "SIGTERM on rank 1")
    assert 11 <= step < STEPS
    wholes.assert_same_end(go_on(outcome, tmp_path / "b", 2, mode), mode, 2)


def test_ranks_that_are_steps_apart_find_one_to_stop_after(tmp_path: Path, wholes: Wholes) -> None:
    """Rank 0 is ahead, blocked in the averaging after step 16; rank 1 is asked 2 steps before, and must get there."""
    faults = [Fault("step", "doze", 1, 14), Fault("step", "SIGTERM", 1, 14)]
    outcome = run(tmp_path / "a", 2, [*SMALL, *MODES["local_sgd"]], faults)
    assert assert_preempted(outcome, "SIGTERM on rank 1") == 17
    wholes.assert_same_end(go_on(outcome, tmp_path / "b", 2, "local_sgd"), "local_sgd", 2)


def test_all_are_asked_and_asked_again_while_they_save(tmp_path: Path, wholes: Wholes) -> None:
    """The signals are those of a torchrun that is asked to stop, and of an impatient user after it."""
    again = [Fault("half a file", "SIGTERM", None), Fault("before the rename", "SIGINT", 0)]
    with Torchrun(tmp_path / "a", 2, [*SMALL, *MODES["diloco"]], [SLOW, *again]) as torchrun:
        while not (torchrun.run_dir / "status.json").exists():
            time.sleep(0.02)
        torchrun.signal(signal.SIGTERM)
        outcome = torchrun.wait()
    assert_preempted(outcome, f"SIGTERM on rank {outcome.status['reason'].split()[3][0]}")
    wholes.assert_same_end(go_on(outcome, tmp_path / "b", 2, "diloco"), "diloco", 2)


@pytest.mark.parametrize("beside", ["false", "true"])
def test_a_rank_that_is_asked_while_it_saves(beside: str, tmp_path: Path, wholes: Wholes) -> None:
    """That checkpoint becomes whole; where all stop comes after it."""
    typed = [*SMALL, *MODES["diloco"], "checkpoint_every=10", f"async_checkpoints={beside}"]
    outcome = run(tmp_path / "a", 2, typed, [SLOW, Fault("half a file", "SIGTERM", 1, 20)])
    assert assert_preempted(outcome, "SIGTERM on rank 1") in range(20, 30)
    assert 20 in checkpoints(outcome.run_dir)
    wholes.assert_same_end(go_on(outcome, tmp_path / "b", 2, "diloco"), "diloco", 2)


def test_a_rank_that_is_blocked_in_a_collective_hears_it(tmp_path: Path) -> None:
    """Its interpreter runs no signal handler then."""
    faults = [Fault("step", "doze", 1, 16), Fault("averaging", "SIGUSR1", 0, 16, after_s=0.3)]
    outcome = run(tmp_path, 2, [*SMALL, *MODES["local_sgd"]], faults)
    assert assert_preempted(outcome, "SIGUSR1 on rank 0") == 17


def test_too_late_to_stop_is_no_reason_to_fail(tmp_path: Path) -> None:
    outcome = run(tmp_path, 2, [*SMALL, *MODES["local_sgd"]], [Fault("evaluation", "SIGTERM", None, STEPS)])
    assert outcome.codes == [[0, 0]]
    assert outcome.status["status"] == "finished"
    assert (outcome.run_dir / "summary.json").exists()


def test_asked_before_the_first_step(tmp_path: Path) -> None:
    with Torchrun(tmp_path, 2, [*SMALL], [Fault("step", "doze", None, 1)]) as torchrun:
        while not (torchrun.run_dir / "status.json").exists():
            time.sleep(0.02)
        torchrun.signal(signal.SIGTERM, [1])
        outcome = torchrun.wait()
    assert outcome.status["status"] == "preempted"
    assert set(outcome.codes[0]) == {75}
