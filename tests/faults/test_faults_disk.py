"""Disks that are full or may not be written."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_torchrun import run
from whole_runs import MODES, SMALL, checkpoints

pytestmark = pytest.mark.faults


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system of 2 MB cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("beside", ["false", "true"])
def test_a_full_disk_is_named_and_what_was_saved_stays(disk: Path, tmp_path: Path, beside: str) -> None:
    typed = [*SMALL, *MODES["local_sgd"], "model.hidden=[256]", "checkpoint_every=5", "keep_checkpoints=99"]
    outcome = run(disk, 2, [*typed, f"async_checkpoints={beside}"])
    assert outcome.codes == [[3, 3]], outcome.stderr
    assert outcome.stderr.count("No space left on device") == 1
    assert "Traceback" not in outcome.stderr
    assert outcome.status["status"] == "failed"
    assert "was not saved, earlier ones are intact" in outcome.status["reason"]
    kept = checkpoints(outcome.run_dir)
    assert kept == list(range(5, kept[-1] + 1, 5))
    again = run(tmp_path / "again", 2, [*typed[:-2], f"resume='{outcome.run_dir}'"])
    assert again.codes == [[0, 0]], again.stderr
    assert f"resumed from step {kept[-1]} of" in again.stderr


def test_a_disk_that_fills_up_with_metrics_does_not_stop_training(disk: Path) -> None:
    """From the first line on: nothing but the directory could be made."""
    with open(disk / "ballast", "wb") as ballast:
        ballast.truncate(0)
    typed = [*SMALL, *MODES["allreduce"], f"hydra.run.dir='{disk / 'run'}'"]
    outcome = run(disk / "x", 2, [*typed, "log_every=1"], [])
    assert outcome.codes == [[0, 0]], outcome.stderr


def test_a_disk_that_may_not_be_written_is_found_before_training(disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    outcome = run(tmp_path, 2, [*SMALL, f"hydra.run.dir='{disk / 'run'}'"])
    assert outcome.codes[0].count(2) >= 1, outcome.stderr
    assert outcome.stderr.count(f"hydra.run.dir={disk / 'run'}: cannot be written (Read-only file system)") == 1
    assert "ranks on cpu" not in outcome.stderr
