"""Long runs: what a rank holds of memory, open files and threads does not grow."""

import time
from collections import defaultdict
from pathlib import Path

import pytest
from forked_torchrun import Torchrun
from held import Held, assert_level
from whole_runs import MODES, SMALL, checkpoints

STEPS = 5000
CASES = [
    pytest.param("streaming_diloco", "true", marks=pytest.mark.faults, id="streaming_diloco, saved beside training"),
    pytest.param("allreduce", "false", marks=pytest.mark.soak, id="allreduce"),
]


@pytest.mark.parametrize(("mode", "beside"), CASES)
def test_nothing_grows_over_5000_steps(mode: str, beside: str, tmp_path: Path) -> None:
    """The run has 20 evaluations, 50 checkpoints and 500 logged steps."""
    often = ["log_every=10", "eval_every=250", "checkpoint_every=100", f"async_checkpoints={beside}"]
    held: dict[tuple[int, int], list[Held]] = defaultdict(list)
    with Torchrun(tmp_path, 2, [*SMALL, *MODES[mode], f"max_steps={STEPS}", *often]) as torchrun:
        while any(rank.is_alive() for rank in torchrun.ranks):
            fifth = 5 * newest(torchrun.run_dir) // STEPS
            for number, process in enumerate(torchrun.ranks):
                held[number, fifth] += Held.by(process.pid)
            time.sleep(0.05)
        outcome = torchrun.wait()
    assert outcome.codes == [[0, 0]], outcome.stderr
    for rank in range(2):
        assert_level(held[rank, 1], held[rank, 4])
    assert checkpoints(outcome.run_dir) == [STEPS - 100, STEPS]


def newest(run_dir: Path) -> int:
    folder = run_dir / "checkpoints"
    steps = [int(path.name[5:13]) for path in folder.iterdir()] if folder.is_dir() else []
    return max(steps, default=0)
