"""Ranks that are slow, and ranks that only look alive: the slow are waited for, and the one that hangs is named."""

from pathlib import Path

import pytest
from fault_points import Fault
from forked_torchrun import run
from whole_runs import EVERY_FIVE, MODES, SMALL, STEPS, checkpoints

pytestmark = pytest.mark.faults
SLOW = Fault("step", "slow", rank=None)
TIMEOUT_S = 2
START_S = 4  # of a run that is done in 2 s


@pytest.mark.parametrize(
    ("mode", "fault", "words"),
    [
        ("local_sgd", Fault("step", "sleep", 1, 7), "its main thread has stood still for"),
        ("local_sgd", Fault("step", "sleep", 0, 7), "its main thread has stood still for"),
        ("allreduce", Fault("data", "sleep", 1, 7), "its loader has given no data for"),
    ],
)
def test_the_rank_whose_step_stands_still_is_named(mode: str, fault: Fault, words: str, tmp_path: Path) -> None:
    """Its other threads go on, heartbeats too, and the rank that waits for it is not to blame."""
    typed = [*SMALL, *MODES[mode], f"timeout_s={TIMEOUT_S}"]
    outcome = run(tmp_path, 2, typed, [SLOW, fault])
    assert outcome.codes == [[4, 4]], outcome.stderr
    assert outcome.seconds[0] < START_S + TIMEOUT_S + 5
    status = outcome.status
    assert (status["status"], status["rank"], status["step"]) == ("failed", fault.rank, 7)
    assert status["reason"].startswith(words)
    assert outcome.stderr.count(f"rank {fault.rank}: {words}") == 1
    assert "Traceback" not in outcome.stderr


def test_a_rank_that_stalls_while_all_are_asked_to_stop_is_waited_for(tmp_path: Path) -> None:
    """For the grace period of a launcher, longer than a failed run waits for a rank without heartbeats."""
    faults = [SLOW, Fault("step", "stall", 1, 11), Fault("step", "SIGTERM", 0, 11)]
    outcome = run(tmp_path, 2, [*SMALL, *MODES["local_sgd"], "timeout_s=60"], faults)
    assert outcome.codes == [[75, 75]], outcome.stderr
    status = outcome.status
    assert status["status"] == "preempted"
    assert checkpoints(outcome.run_dir) == [status["step"]]


@pytest.mark.parametrize("beside", ["false", "true"])
def test_a_slow_disk_is_no_dead_rank(beside: str, tmp_path: Path) -> None:
    """Rank 0 takes more than twice `timeout_s` for its file."""
    typed = [*SMALL, *MODES["local_sgd"], *EVERY_FIVE, f"async_checkpoints={beside}", f"timeout_s={TIMEOUT_S}"]
    outcome = run(tmp_path, 2, typed, [Fault("half a file", "pause", 0, 10)])
    assert outcome.codes == [[0, 0]], outcome.stderr
    assert checkpoints(outcome.run_dir)[-1] == STEPS
    log = (outcome.run_dir / "train.log").read_text()
    assert "rank 0: it has been writing" in log and "it is given 60 s for that" in log


def test_a_disk_that_is_stuck_is_named(tmp_path: Path) -> None:
    faults = [Fault("step", "be impatient", None), Fault("half a file", "sleep", 0, 10)]
    typed = [*SMALL, *MODES["local_sgd"], *EVERY_FIVE, f"timeout_s={TIMEOUT_S}"]
    outcome = run(tmp_path, 2, typed, faults)
    assert outcome.codes == [[4, 4]], outcome.stderr
    path = outcome.run_dir / "checkpoints" / "step-00000010"
    assert outcome.status["rank"] == 0
    assert outcome.status["reason"].startswith(f"it has been writing {path} for")
    assert (outcome.run_dir / "checkpoints" / "step-00000005").is_dir()
