"""Files of whole runs that are damaged, foreign or absent: refused by name, with nothing changed, or done without."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_cases import content_of, empty, fill_with_zeros, flip_a_bit, truncate, write_another_format
from fault_points import Fault
from forked_torchrun import Outcome, run
from idx_files import idx, pixels
from whole_runs import EVERY_FIVE, MODES, SMALL, Wholes, checkpoints

pytestmark = pytest.mark.faults
MODE = MODES["local_sgd"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, in the middle of a period and after step 20 at the latest."""
    faults = [Fault("step", "slow", None), Fault("step", "SIGTERM", 1, 21)]
    outcome = run(tmp_path_factory.mktemp("stopped"), 2, [*SMALL, *MODE, *EVERY_FIVE], faults)
    assert outcome.status["status"] == "preempted"
    return outcome.run_dir


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


def go_on(copy: Path, folder: Path, *typed: str, size: int = 2) -> Outcome:
    return run(folder, size, [*SMALL, *MODE, *typed, f"resume='{copy}'"])


@pytest.mark.parametrize("damage", [truncate, empty, fill_with_zeros, flip_a_bit, write_another_format, Path.unlink])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    damage: Callable[[Path], None], copy: Path, tmp_path: Path, wholes: Wholes
) -> None:
    older, newest = sorted((copy / "checkpoints").iterdir())
    damage(newest / "rank-0001.pt")
    outcome = go_on(copy, tmp_path)
    assert outcome.codes == [[0, 0]], outcome.stderr
    said = [line for line in outcome.stderr.splitlines() if "checkpoint refused, trying the one before it" in line]
    assert len(said) == 1
    assert f"rank 1: {newest / 'rank-0001.pt'}: " in said[0]
    assert f"resumed from step {int(older.name[5:])} of" in outcome.stderr
    wholes.assert_same_end(outcome, "local_sgd", 2)


def test_when_every_checkpoint_is_damaged_the_run_says_so_and_leaves_them(copy: Path, tmp_path: Path) -> None:
    for folder in (copy / "checkpoints").iterdir():
        flip_a_bit(folder / "rank-0000.pt")
    before = content_of(copy)
    outcome = go_on(copy, tmp_path)
    assert_refused(outcome, 3, "every checkpoint is damaged")
    assert content_of(copy) == before


@pytest.mark.parametrize(
    ("typed", "size", "differs"),
    [
        (("model.hidden=[16]",), 2, "model.hidden: the checkpoint has [32], this run [16]"),
        (("optimizer=adamw",), 2, 'optimizer.name: the checkpoint has "SGD", this run "AdamW"'),
        (("sync.period=4",), 2, "sync.period: the checkpoint has 8, this run 4"),
        ((), 3, "world_size: the checkpoint has 2, this run 3"),
    ],
)
def test_another_runs_checkpoint_is_refused_with_what_differs(
    typed: tuple[str, ...], size: int, differs: str, copy: Path, tmp_path: Path
) -> None:
    before = content_of(copy)
    assert_refused(go_on(copy, tmp_path, *typed, size=size), 3, differs)
    assert content_of(copy) == before


def test_data_that_are_not_what_they_claim_to_be_are_refused(tmp_path: Path) -> None:
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(pixels(20) % 10))
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(pixels(20, 28, 28)))
    truncate(victim := tmp_path / "train-images-idx3-ubyte")
    typed = ["dataset=fashion_mnist", f"data_root='{tmp_path}'", "max_steps=1", "global_batch_size=4", "device=cpu"]
    assert_refused(run(tmp_path / "run", 2, typed), 3, f"{victim}: ")


def assert_refused(outcome: Outcome, code: int, text: str) -> None:
    # Who is still importing when another has refused meets torchrun's SIGTERM before it has a handler.
    assert code in outcome.codes[0] and set(outcome.codes[0]) <= {code, -signal.SIGTERM}, outcome.stderr
    assert outcome.stderr.count(text) == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.status["status"] == "failed"
    assert text in outcome.status["reason"]
    assert checkpoints(outcome.run_dir) == []
    assert not (outcome.run_dir / "model.safetensors").exists()
