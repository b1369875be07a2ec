"""NaN and infinity on one rank: nothing of that step is applied, and who, where and what is said once."""

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
