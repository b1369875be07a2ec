"""python -m ddp_agent.checkpoint list | verify | prune."""

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_cases import content_of, flip_a_bit, names, save

from ddp_agent.checkpoint.__main__ import main
from ddp_agent.outputs.run_directory import RunDirectory


def evaluated(metric: float | None, *, higher_is_better: bool = True) -> dict[str, object]:
    return {"metric": metric, "metric_name": "accuracy", "higher_is_better": higher_is_better}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Return checkpoints of steps 10, 20 (the best), 30 and 40."""
    folder = tmp_path / "checkpoints"
    for step, metric in {10: 0.5, 20: 0.75, 30: None, 40: 0.25}.items():
        save(folder, step, details=evaluated(metric))
    return folder


def call(command: str, checkpoints: Path, *options: str) -> int:
    return main([command, str(checkpoints.parent), *options])


def test_list_reads_manifests_alone(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in checkpoints.rglob("rank-*"):
        file.unlink()
    assert call("list", checkpoints) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"step-{step:08d}" for step in (40, 30, 20, 10)]
    assert lines[2].endswith("accuracy 0.7500 (best)")
    assert [line.endswith("(best)") for line in lines] == [False, False, True, False]
    assert "accuracy" not in lines[1]


def test_the_best_may_be_the_lowest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, metric in {10: 0.5, 20: 0.75}.items():
        save(tmp_path / "checkpoints", step, details=evaluated(metric, higher_is_better=False))
    assert call("list", tmp_path / "checkpoints") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("(best)")


def test_verify_reads_every_byte_and_changes_nothing(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content_of(checkpoints)
    assert call("verify", checkpoints) == 0
    assert capsys.readouterr().out.count(": complete, 1 files") == 4
    assert content_of(checkpoints) == before
    flip_a_bit(checkpoints / "step-00000030" / "rank-0000.pt")
    (checkpoints / "step-00000050.tmp-0123abcd").mkdir()
    assert call("verify", checkpoints) == 3
    printed = capsys.readouterr()
    assert printed.out.count(": complete") == 3
    assert "step-00000030/rank-0000.pt: damaged" in printed.err
    assert "step-00000050.tmp-0123abcd" in printed.out + printed.err
    assert names(checkpoints)[-1] == "step-00000050.tmp-0123abcd"


@pytest.mark.parametrize(
    ("options", "kept"),
    [(["--keep", "1"], [40]), (["--keep", "1", "--keep-best"], [20, 40]), (["--keep", "3"], [20, 30, 40])],
)
def test_prune_keeps_the_newest_and_the_best(checkpoints: Path, options: list[str], kept: list[int]) -> None:
    (checkpoints / "step-00000050.tmp-0123abcd").mkdir()
    assert call("prune", checkpoints, *options) == 0
    assert names(checkpoints) == [f"step-{step:08d}" for step in kept]


def test_prune_counts_whole_ones_alone(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If damaged ones counted, the last one that loads would be deleted. A damaged one may be evidence."""
    flip_a_bit(checkpoints / "step-00000040" / "rank-0000.pt")
    assert call("prune", checkpoints, "--keep", "1") == 3
    assert names(checkpoints) == ["step-00000030", "step-00000040"]
    assert "step-00000040/rank-0000.pt: damaged" in capsys.readouterr().err
    flip_a_bit(checkpoints / "step-00000030" / "rank-0000.pt")
    assert call("prune", checkpoints, "--keep", "1") == 3
    assert names(checkpoints) == ["step-00000030", "step-00000040"]
    assert "nothing is deleted" in capsys.readouterr().err


def test_a_run_that_is_going_on_is_not_pruned(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunDirectory(checkpoints.parent, restart=True):
        assert call("prune", checkpoints, "--keep", "1") == 2
    assert "in use by another run" in capsys.readouterr().err
    assert len(names(checkpoints)) == 4


def test_nothing_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["list"], ["verify"], ["prune", "--keep", "1"]):
        assert main([command[0], str(tmp_path), *command[1:]]) == 3
        assert capsys.readouterr().err.strip() == f"{tmp_path / 'checkpoints'}: holds no checkpoint"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("typed", [["--keep", "0"], ["--keep", "x"], []])
def test_prune_refuses_a_wrong_number(checkpoints: Path, typed: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        call("prune", checkpoints, *typed)
    assert left.value.code == 2
    assert len(names(checkpoints)) == 4


def test_it_is_a_command_and_waits_for_no_torch(checkpoints: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ddp_agent.checkpoint", "list", str(checkpoints.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.count("step-") == 4
    assert " torch\n" not in done.stderr
