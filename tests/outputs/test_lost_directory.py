"""What happens to a run whose directory, or a file in it, somebody takes away while it trains."""

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch.distributed as dist
from rank_pool import RankPool
from run_states import recorded, same, states, training_state
from runs import mode, run

from ddp_agent.outputs.log import setup_logging
from ddp_agent.outputs.metrics_file import MetricsFile, read_metrics
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.tracking import MetricsLog
from ddp_agent.training.session import Session

AT_STEP = 5
OPTIONS = ("checkpoint_every=6", "log_every=1", "eval_every=4")


def delete(path: Path) -> None:
    shutil.rmtree(path)


def delete_with_parent(path: Path) -> None:
    shutil.rmtree(path.parent)


def move(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def replace(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.mkdir()
    (path / "status.json").write_text("mine")


def claim_again(path: Path) -> None:
    """Another run in its place: somebody has deleted a lock that looked stale."""
    (path / ".lock").unlink()
    if os.fork() == 0:
        RunDirectory(path, restart=True)
        signal.pause()
    while not (path / ".lock").exists() or not (path / ".lock").read_text():
        pass


def delete_lock(path: Path) -> None:
    (path / ".lock").unlink()


def delete_all_that_is_seen(path: Path) -> None:
    """`rm -r run/*`."""
    for each in path.iterdir():
        if not each.name.startswith("."):
            shutil.rmtree(each) if each.is_dir() else each.unlink()


def hurt_run(
    typed: tuple[dict[str, Any], dict[str, str]], path: str, hurt: Callable[[Path], None]
) -> dict[str, Any] | str:
    """Train, and call `hurt` on rank 0 before step `AT_STEP`, while no rank writes."""
    original = Session.set_lr

    def hurting(at: Session, step: int) -> None:
        if step == AT_STEP:
            dist.barrier()
            if dist.get_rank() == 0:
                hurt(Path(path))
            dist.barrier()
        original(at, step)

    with patch.object(Session, "set_lr", hurting):
        return run(*typed, path)


@pytest.mark.parametrize(
    ("hurt", "words"),
    [
        (delete, "deleted, moved or unmounted"), (delete_with_parent, "deleted, moved or unmounted"),
        (move, "moved to"), (replace, "another folder is in its place"),
    ],
)  # fmt: skip
def test_a_lost_directory_ends_the_run_and_its_state_is_saved_beside(
    hurt: Callable[[Path], None], words: str, ranks2: RankPool, tmp_path: Path
) -> None:
    path, beside = tmp_path / "outputs" / "run", tmp_path / "outputs" / "run-rescued"
    ends = ranks2.run(hurt_run, mode("local_sgd", *OPTIONS), str(path), hurt)
    for said in ends:
        assert isinstance(said, str) and said.startswith(f"LostDirectoryError: {path}: ") and words in said
        assert f"after step 6 is saved in {beside}; continue with resume={beside}" in said
    assert recorded(beside) == [1, 2, 3, 4, 5, 6]
    assert len(states(beside, 6)) == 2
    if hurt is replace:
        assert [file.name for file in path.iterdir()] == ["status.json"]
    if hurt is delete:
        whole, resumed = tmp_path / "whole", tmp_path / "resumed"
        ranks2.run(run, *mode("local_sgd", *OPTIONS), str(whole))
        ranks2.run(run, *mode("local_sgd", *OPTIONS, f"resume={beside}"), str(resumed))
        pairs = zip(states(whole, 8), states(resumed, 8), strict=True)
        assert all(same(training_state(one), training_state(other)) for one, other in pairs)
        assert recorded(resumed) == recorded(whole)


@pytest.mark.parametrize("hurt", [delete_lock, delete_all_that_is_seen])
def test_files_that_are_deleted_are_made_again(hurt: Callable[[Path], None], ranks2: RankPool, tmp_path: Path) -> None:
    path = tmp_path / "run"
    (summary, _) = ranks2.run(hurt_run, mode("local_sgd", *OPTIONS), str(path), hurt)
    assert summary["status"] == "finished"
    assert recorded(path) == list(range(1, 9))
    assert len(states(path, 8)) == 2
    assert (path / ".lock").exists()
    assert json.loads((path / "status.json").read_text())["status"] == "finished"


def test_a_lock_that_another_run_has_taken_is_a_lost_directory(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    assert directory.problem() == ""
    claim_again(directory.path)
    assert directory.problem().endswith("another run has taken it while this one was in it")
    holder = int((directory.path / ".lock").read_text().split()[1])
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    directory.close()


@pytest.mark.parametrize("size", [0, 30, 1000])
def test_metrics_that_somebody_cuts_or_lengthens_get_no_hole(
    size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", [])
    for step in range(1, 4):
        file.put({"step": step, "unix_s": 1.0})
    os.truncate(file.path, size)
    for step in range(4, 6):
        file.put({"step": step, "unix_s": 1.0})
    file.close()
    assert caplog.text.count("changed by somebody else") == 1
    steps = [record["step"] for record in read_metrics(file.path, 9)]
    assert steps[-2:] == [4, 5]
    if size < 100:
        assert b"\0" not in file.path.read_bytes()


@pytest.mark.parametrize("moved", [True, False])
def test_metrics_and_log_that_were_rotated_are_written_again(
    moved: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with RunDirectory(tmp_path / "run") as directory:
            setup_logging(directory.path, 0)
            metrics = MetricsLog(directory)
            for step in range(1, 4):
                metrics.logged(step, {"unix_s": 1.0})
                logging.getLogger("x").info("line %d", step)
                if step == 2:
                    for file in (directory.metrics, directory.log(0)):
                        file.rename(f"{file}.1") if moved else file.unlink()
            metrics.close()
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
    assert recorded(directory.path) == [1, 2, 3]
    assert "line 3" in directory.log(0).read_text()
