"""All files of a run: permissions by the umask, and nothing written through what stands in their place."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked_torchrun import Torchrun

from ddp_agent.cli import sweep
from ddp_agent.config.untrusted import UnusableFileError, no_link
from ddp_agent.errors import ConfigError, DataError
from ddp_agent.outputs.metrics_file import MetricsFile
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.report.__main__ import main as report

EVERYTHING = [
    "model.hidden=[8]", "max_steps=12", "eval_every=6", "checkpoint_every=6", "ema_decay=0.9", "profile_steps=2",
    "keep_best_checkpoint=true", "async_checkpoints=true", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def of_umask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A run that leaves all that a run can leave, with a report of it."""
    made: dict[int, Path] = {}

    def made_with(umask: int) -> Path:
        if umask not in made:
            folder = tmp_path_factory.mktemp("run")
            with Torchrun(folder, 2, EVERYTHING, environment={"UMASK_OF_TEST": f"{umask:o}"}) as torchrun:
                outcome = torchrun.wait()
            assert outcome.codes == [[0, 0]], outcome.stderr
            made[umask] = outcome.run_dir
            old = os.umask(umask)
            try:
                assert report([str(outcome.run_dir)]) == 0
            finally:
                os.umask(old)
        return made[umask]

    return made_with


@pytest.mark.parametrize("umask", [0o027, 0o002])
def test_every_file_is_as_readable_as_the_umask_says(umask: int, of_umask: Callable[[int], Path]) -> None:
    top = of_umask(umask)
    found = {path.relative_to(top): path.stat() for path in top.rglob("*")}
    names = {path.parts[0] for path in found}
    assert {"model.safetensors", "train.log", "trace.rank1.json.gz", ".lock", "tensorboard", "ema", "report"} <= names
    wrong = {
        str(path): oct(entry.st_mode & 0o777)
        for path, entry in found.items()
        if entry.st_mode & 0o777 != (0o777 if stat.S_ISDIR(entry.st_mode) else 0o666) & ~umask
    }
    assert wrong == {}


def in_the_place_of(path: Path, other: Path) -> Iterator[str]:
    """Put other things in the place of a file or folder, one at a time, and yield what they are."""
    folder = path.is_dir()
    aside = path.with_name("aside of a test")
    path.rename(aside)
    path.symlink_to(other)
    yield "a link"
    path.unlink()
    os.mkfifo(path)
    yield "a FIFO"
    path.unlink()
    path.touch() if folder else path.mkdir()
    yield "a file" if folder else "a folder"
    path.unlink() if folder else path.rmdir()
    aside.rename(path)


def test_a_run_does_not_begin_where_something_else_has_a_files_name(
    of_umask: Callable[[int], Path], tmp_path: Path
) -> None:
    """Each name of a run's files and folders is tried: what a run leaves is what it may write again."""
    run = Path(shutil.copytree(of_umask(0o027), tmp_path / "run"))
    other = Path(shutil.copytree(run, tmp_path / "other"))
    (run / "train.rank1.log").touch()
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    names = [path.name for path in run.iterdir() if path.name != "report"]
    for name in names:
        for kind in in_the_place_of(run / name, other / name):
            with pytest.raises(ConfigError, match=f"{name} in it is {kind}, expected a f.*; remove it"):
                RunDirectory(run, restart=True)
    RunDirectory(run, restart=True).close()
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", ["0/.hydra", "0/.hydra/config.yaml", "0/train.log", "multirun.yaml", "1/checkpoints"])
def test_a_sweep_does_not_begin_where_hydra_would_write_through_a_link(place: str, tmp_path: Path) -> None:
    (tmp_path / "sweep" / place).parent.mkdir(parents=True)
    sweep._refuse_obstacles(tmp_path / "sweep")
    (tmp_path / "sweep" / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"{Path(place).name} in it is a link, expected a f.* of the run's own"):
        sweep._refuse_obstacles(tmp_path / "sweep")
    assert not (tmp_path / "elsewhere").exists()


def test_files_that_are_appended_to_are_not_links(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name, kind in (("link", "a link"), ("dangling", "a link"), ("fifo", "a FIFO")):
        with pytest.raises(UnusableFileError, match=f"is {kind}, expected a regular file"):
            no_link(str(tmp_path / name), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with open(tmp_path / "new", "a", opener=no_link) as file:
        file.write("ours")
    assert (tmp_path / "other").read_text() == "theirs" and (tmp_path / "new").read_text() == "ours"


def test_the_metrics_of_a_run_that_cannot_be_read_are_not_written_over(tmp_path: Path) -> None:
    from ddp_agent.outputs.metrics_file import read_metrics

    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl: is a folder, expected a regular file; repair it"):
        read_metrics(tmp_path / "metrics.jsonl", 5)
    (tmp_path / "theirs").write_text("{}\n")
    (tmp_path / "mine").symlink_to(tmp_path / "theirs")
    MetricsFile(tmp_path / "mine", [{"step": 1}]).close()
    assert (tmp_path / "theirs").read_text() == "{}\n", "the link was replaced"


def test_a_report_is_not_written_through_a_link_in_the_runs_directory(
    of_umask: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(of_umask(0o027), tmp_path / "run"))
    shutil.rmtree(run / "report")
    (tmp_path / "elsewhere").mkdir()
    (run / "report").symlink_to(tmp_path / "elsewhere")
    assert report([str(run)]) == 2
    assert "report: is a link, expected a folder of a report; --output chooses another" in capsys.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())
    assert RunFiles(run).obstacle() is None, "no run writes there"
