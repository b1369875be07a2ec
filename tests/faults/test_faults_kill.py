"""SIGKILL, exceptions and hangs: who is left says who failed, and a restart ends as if nothing had been."""

import json
import signal
from pathlib import Path

import pytest
from fault_points import Fault
from forked_torchrun import Outcome, Torchrun, run
from whole_runs import EVERY_FIVE, MODES, OTHER_MODES, SMALL, STEPS, Wholes, checkpoints

pytestmark = pytest.mark.faults
SLOW = Fault("step", "slow", rank=None)
KILLS = [
    ("allreduce", 2, Fault("averaging", "SIGKILL", 0, 17)),
    ("allreduce", 3, Fault("step", "SIGKILL", 2, 33)),
    ("local_sgd", 2, Fault("step", "SIGKILL", 1, 23)),
    ("diloco", 2, Fault("averaging", "SIGKILL", 1, 24)),
    ("streaming_diloco", 2, Fault("step", "SIGKILL", 0, 23)),
    ("compressed", 2, Fault("averaging", "SIGKILL", 1, 31)),
    *((mode, 2, Fault("step", "SIGKILL", 1, 23)) for mode in OTHER_MODES),
]
NOTICED_S = 10.0


def assert_failed(outcome: Outcome, rank: int, *, code: int = 4) -> None:
    """Assert that `rank` failed in the first attempt, and that the others were notified and left."""
    others = [it for number, it in enumerate(outcome.codes[0]) if number != rank]
    assert set(others) == {code}, outcome.stderr
    assert outcome.fallout_s[0] < NOTICED_S
    assert "terminate called" not in outcome.stderr


@pytest.mark.parametrize(("mode", "size", "kill"), KILLS)
def test_a_killed_rank_is_named_and_the_restart_ends_bitwise_the_same(
    mode: str, size: int, kill: Fault, tmp_path: Path, wholes: Wholes
) -> None:
    """SLOW keeps local ranks from being done before they can hear of it."""
    faults = [kill] if mode == "allreduce" else [SLOW, kill]
    outcome = run(tmp_path, size, [*SMALL, *(MODES | OTHER_MODES)[mode], *EVERY_FIVE], faults, max_restarts=1)
    assert outcome.codes[1:] == [[0] * size], outcome.stderr
    assert outcome.codes[0][kill.rank or 0] == -signal.SIGKILL
    assert_failed(outcome, kill.rank or 0)
    assert outcome.stderr.count(f"rank {kill.rank}: died without a word, last seen in step") == 1
    assert "Traceback" not in outcome.stderr
    assert outcome.status["status"] == "finished"
    assert checkpoints(outcome.run_dir)[-1] == STEPS
    wholes.assert_same_end(outcome, mode, size)


def test_a_resumed_run_that_dies_before_its_first_checkpoint_goes_on_from_the_other_runs(
    tmp_path: Path, wholes: Wholes
) -> None:
    first = run(tmp_path / "a", 2, [*SMALL, *MODES["local_sgd"]], [Fault("step", "SIGTERM", None, 11)])
    stopped = first.status["step"]
    resumed = [*SMALL, *MODES["local_sgd"], f"resume='{first.run_dir}'"]
    outcome = run(tmp_path / "b", 2, resumed, [SLOW, Fault("step", "SIGKILL", 1, 30)], max_restarts=1)
    assert outcome.codes[1:] == [[0, 0]], outcome.stderr
    assert outcome.stderr.count(f"resumed from step {stopped} of {first.run_dir}") == 2
    wholes.assert_same_end(outcome, "local_sgd", 2)


def test_a_rank_killed_in_a_large_averaging_leaves_nothing_torn(tmp_path: Path) -> None:
    """16 MB are under way for some 20 ms; a timer ends rank 1 in the middle."""
    big = [*SMALL, "max_steps=6", "model.hidden=[2000,2000]", "sync=local_sgd", "sync.period=2"]
    whole = run(tmp_path / "whole", 2, big)
    kill = Fault("averaging", "SIGKILL", 1, 4, after_s=0.006)
    outcome = run(tmp_path / "killed", 2, [*big, "checkpoint_every=1"], [kill], max_restarts=1)
    assert outcome.codes[0] == [4, -signal.SIGKILL], outcome.stderr
    assert outcome.codes[1] == [0, 0]
    assert "resumed from step 3" in outcome.stderr
    models = [(it.run_dir / "model.safetensors").read_bytes() for it in (whole, outcome)]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("fault", "resumed"),
    [
        (Fault("half a file", "write half", 1, 10), 5),
        (Fault("before the manifest", "SIGKILL", 0, 10), 5),
        (Fault("deleting the old", "SIGKILL", 0, 15), 15),
    ],
)
@pytest.mark.parametrize("beside", ["false", "true"])
def test_a_rank_killed_while_it_saves_costs_that_checkpoint_alone(
    fault: Fault, resumed: int, beside: str, tmp_path: Path, wholes: Wholes
) -> None:
    typed = [*SMALL, *MODES["local_sgd"], *EVERY_FIVE, f"async_checkpoints={beside}"]
    outcome = run(tmp_path, 2, typed, [SLOW, fault], max_restarts=1)
    assert outcome.codes[1] == [0, 0], outcome.stderr
    assert_failed(outcome, fault.rank or 0)
    assert f"resumed from step {resumed} of" in outcome.stderr
    log = (outcome.run_dir / "train.log").read_text()
    assert log.count("removed unfinished checkpoints of a dead attempt") == (1 if resumed == 5 else 0)
    wholes.assert_same_end(outcome, "local_sgd", 2)


@pytest.mark.parametrize("mode", ["allreduce", "local_sgd"])
def test_the_first_error_is_told_with_its_rank_and_once(mode: str, tmp_path: Path) -> None:
    outcome = run(tmp_path, 2, [*SMALL, *MODES[mode]], [SLOW, Fault("step", "raise", 1, 17)])
    assert outcome.codes == [[4, 1]], outcome.stderr
    status = outcome.status
    assert (status["status"], status["rank"], status["step"]) == ("failed", 1, 17)
    assert status["reason"] == "BugError: a bug in the model"
    assert outcome.stderr.count("Traceback") == 1
    assert outcome.stderr.rstrip().endswith("fault_points.BugError: a bug in the model")
    assert outcome.stderr.count("rank 1: BugError: a bug in the model\n") == 1


def test_a_crash_loop_ends_by_itself(tmp_path: Path) -> None:
    """Three attempts begin after step 10; the next one is not made."""
    crash = Fault("step", "raise", 1, 13, attempt=None)
    outcome = run(tmp_path, 2, [*SMALL, *MODES["local_sgd"], *EVERY_FIVE], [SLOW, crash], max_restarts=4)
    assert outcome.codes == [[4, 1]] * 4 + [[4, 4]], outcome.stderr
    status = outcome.status
    assert status["status"] == "failed"
    assert status["reason"].startswith("3 attempts in a row began after step 10")
    assert "the last one: BugError: a bug in the model." in status["reason"]
    told = json.loads((outcome.run_dir / "attempts.json").read_text())
    assert [attempt["from_step"] for attempt in told] == [0, 10, 10, 10]


@pytest.mark.parametrize(("mode", "rank"), [("allreduce", 1), ("local_sgd", 1), ("local_sgd", 0)])
def test_a_rank_that_hangs_is_named_within_the_timeout(
    mode: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the period of 50 steps is over."""
    monkeypatch.setattr("forked_torchrun.GRACE_S", 1.0)  # torchrun waits 30 s for the one that hangs
    typed = [*SMALL, *MODES[mode], *(["sync.period=50"] if mode == "local_sgd" else []), "timeout_s=3"]
    outcome = run(tmp_path, 2, typed, [Fault("step", "slow", 1 - rank), Fault("step", "SIGSTOP", rank, 7)])
    assert outcome.codes[0][rank] == -signal.SIGKILL
    assert outcome.codes[0][1 - rank] == 4, outcome.stderr
    assert outcome.seconds[0] < 3 + 5 + 4, "from the start of the run, which takes 2 s"
    assert outcome.status["rank"] == rank
    assert outcome.status["reason"].startswith("no sign of life for 3 s")
    assert outcome.stderr.count(f"rank {rank}: no sign of life for 3 s") == 1


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    typed = [*SMALL, "max_steps=100000", "sync=independent"]
    with Torchrun(tmp_path, 1, typed) as first:
        while not (first.run_dir / "status.json").exists():
            assert first.ranks[0].is_alive()
        second = run(tmp_path, 1, typed)
        assert second.codes == [[2]]
        assert f"in use by another run (pid {first.ranks[0].pid}" in second.stderr
        assert first.ranks[0].is_alive()
        first.signal(signal.SIGTERM)
        assert first.wait().codes == [[75]]
