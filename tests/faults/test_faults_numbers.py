"""NaN, infinity or a flipped bit on one rank: nothing of it is saved, and who, where and what is said once."""

from pathlib import Path

import pytest
from fault_points import Fault
from forked_torchrun import run
from whole_runs import EVERY_FIVE, MODES, SMALL, checkpoints

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(("mode", "bad_rank"), [*zip(MODES, (1, 0, 0, 1, 0), strict=True)])
def test_a_nan_on_one_rank_stops_all(mode: str, bad_rank: int, tmp_path: Path) -> None:
    outcome = run(tmp_path, 2, [*SMALL, *MODES[mode], *EVERY_FIVE], [Fault("forward", "nan", bad_rank, 13)])
    assert outcome.codes == [[5, 5]], outcome.stderr
    status = outcome.status
    assert (status["status"], status["rank"], status["step"]) == ("failed", bad_rank, 13)
    assert status["reason"] == "in step 13 the gradient of 1.weight is nan; nothing of that step is applied or saved"
    assert outcome.stderr.count("is nan") == 1
    assert f"rank {bad_rank}: in step 13" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert checkpoints(outcome.run_dir) == [5, 10]
    assert not (outcome.run_dir / "model.safetensors").exists()


@pytest.mark.parametrize("mode", ["allreduce", "local_sgd"])
def test_a_gradient_that_overflows_behind_a_finite_loss(mode: str, tmp_path: Path) -> None:
    outcome = run(tmp_path, 2, [*SMALL, *MODES[mode]], [Fault("forward", "overflow", 1, 13)])
    assert outcome.codes == [[5, 5]], outcome.stderr
    assert (outcome.status["rank"], outcome.status["step"]) == (1, 13)


@pytest.mark.parametrize("mode", ["allreduce", "compressed"])
def test_a_weight_that_flips_is_found_before_anything_of_it_is_saved(mode: str, tmp_path: Path) -> None:
    outcome = run(tmp_path, 2, [*SMALL, *MODES[mode], *EVERY_FIVE], [Fault("step", "flip a bit", 1, 13)])
    assert outcome.codes == [[3, 3]], outcome.stderr
    assert (outcome.status["status"], outcome.status["step"]) == ("failed", 15)
    told = "after step 15 the parameters that all ranks share are not the same on rank 1 as on rank 0"
    assert outcome.status["reason"].startswith(told)
    assert outcome.stderr.count(told) == 1
    assert "Traceback" not in outcome.stderr
    assert checkpoints(outcome.run_dir) == [5, 10]
