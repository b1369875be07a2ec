"""What has a checkpoint's name and is none, and what belongs to another run: passed over or removed, and said."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_cases import content_of, is_state_of, load, names, save

from ddp_agent.checkpoint import folder
from ddp_agent.checkpoint.__main__ import main as command
from ddp_agent.errors import CheckpointError

LEFTOVER, CHECKPOINT, NEXT = "step-00000030.tmp-0123abcd", "step-00000010", "step-00000020"


def bound_socket(path: Path, _: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def folder_of_links(path: Path, other: Path) -> None:
    path.mkdir()
    for name in ("rank-0000.pt", "manifest.json"):
        (path / name).symlink_to(other / name)


KINDS: dict[str, Callable[[Path, Path], object]] = {
    "a file": lambda path, _: path.write_text("notes"),
    "a FIFO": lambda path, _: os.mkfifo(path),
    "a socket": bound_socket,
    "a link": lambda path, other: path.symlink_to(other),
    "a dangling link": lambda path, _: path.symlink_to("nowhere"),
    "a folder of links": lambda path, other: folder_of_links(path, other),
    "an empty folder": lambda path, _: path.mkdir(),
}


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another run's checkpoint."""
    return save(tmp_path / "other" / "checkpoints", 10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [LEFTOVER, CHECKPOINT, NEXT])
def test_what_is_no_checkpoint_stops_no_save_no_load_and_no_prune(
    kind: str, name: str, tmp_path: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content_of(other)
    run = tmp_path / "run"
    save(run / "checkpoints", 5)
    KINDS[kind](run / "checkpoints" / name, other)
    assert is_state_of(load(run / "checkpoints"), 5)
    assert command(["list", str(run)]) == (0 if name == LEFTOVER else 3)
    assert name in "".join(capsys.readouterr())
    save(run / "checkpoints", 20)
    assert is_state_of(load(run / "checkpoints"), 20)
    if name == LEFTOVER:
        assert names(run / "checkpoints") == ["step-00000005", "step-00000020"]
        KINDS[kind](run / "checkpoints" / name, other)
    assert command(["prune", str(run), "--keep", "1"]) == (3 if name == CHECKPOINT else 0)
    assert f"{LEFTOVER}: deleted" in capsys.readouterr().out or name != LEFTOVER
    assert is_state_of(load(run / "checkpoints"), 20)
    assert content_of(other) == before


@pytest.mark.parametrize("name", [LEFTOVER, "step-00000005"])
def test_what_the_system_does_not_let_go_is_said_and_passed_over(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    save(run / "checkpoints", 5)
    (run / "checkpoints" / name).mkdir(exist_ok=True)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    save(run / "checkpoints", 10, keep=1)
    save(run / "checkpoints", 20, keep=1)
    assert name in caplog.text and "Permission denied" in caplog.text
    assert is_state_of(load(run / "checkpoints"), 20)
    assert command(["prune", str(run), "--keep", "1"]) == 0
    assert "could not be deleted (Permission denied)" in capsys.readouterr().err
    assert len([each for each in names(run / "checkpoints") if ".tmp-" in each]) == len(
        folder.unfinished(run / "checkpoints")
    )


def test_a_folder_of_checkpoints_that_is_a_link_is_another_runs(
    tmp_path: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(other.parent, 20)
    before = content_of(other.parent)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(other.parent)
    for action in (lambda path: save(path, 30, keep=1), load, folder.newest, folder.unfinished):
        with pytest.raises(CheckpointError, match=r"checkpoints: is a link, expected a folder of this run's own"):
            action(tmp_path / "run" / "checkpoints")
    for typed in (["list"], ["verify"], ["prune", "--keep", "1"]):
        assert command([typed[0], str(tmp_path / "run"), *typed[1:]]) == 3
        assert "is a link" in capsys.readouterr().err
    assert content_of(other.parent) == before


def test_a_run_directory_may_be_a_link(tmp_path: Path, other: Path) -> None:
    """As when outputs/ is on another disk."""
    (tmp_path / "outputs").symlink_to(other.parents[1])
    assert command(["list", str(tmp_path / "outputs")]) == 0
    assert is_state_of(load(tmp_path / "outputs" / "checkpoints"), 10)
