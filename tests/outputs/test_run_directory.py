"""Run directories have one writer, no half-written files, and nothing in them is overwritten."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from ddp_agent.errors import ConfigError
from ddp_agent.outputs import run_status
from ddp_agent.outputs.files import write_atomically
from ddp_agent.outputs.run_directory import RunDirectory

fork = multiprocessing.get_context("fork")


def in_child(target: Callable[..., None], *args: object) -> int | None:
    child = fork.Process(target=target, args=args)
    child.start()
    child.join(30)
    return child.exitcode


def status_of(run: RunDirectory) -> dict[str, object]:
    status = json.loads(run.status.read_text())
    assert isinstance(status, dict)
    return status


def hold(path: Path, ready: Event) -> None:
    RunDirectory(path)
    ready.set()
    signal.pause()


def test_missing_parents_are_created(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "a" / "b=1,c") as run:
        assert run.path.is_dir()


def test_a_second_run_is_refused_with_the_pid_of_the_first_and_admitted_after_its_crash(
    tmp_path: Path,
) -> None:
    ready = fork.Event()
    holder = fork.Process(target=hold, args=(tmp_path, ready))
    holder.start()
    try:
        assert ready.wait(30)
        with pytest.raises(ConfigError, match=rf"in use by another run \(pid {holder.pid} "):
            RunDirectory(tmp_path)
    finally:
        assert holder.pid
        os.kill(holder.pid, signal.SIGKILL)
        holder.join(30)
    RunDirectory(tmp_path).close()


def test_a_refused_run_neither_lifts_the_lock_nor_keeps_it_open(tmp_path: Path) -> None:
    with RunDirectory(tmp_path):
        before = os.listdir("/proc/self/fd")
        for _ in range(2):
            with pytest.raises(ConfigError, match=rf"pid {os.getpid()} "):
                RunDirectory(tmp_path)
        assert os.listdir("/proc/self/fd") == before


def test_a_full_disk_at_the_start_is_a_refusal_that_keeps_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
            RunDirectory(tmp_path)
    RunDirectory(tmp_path).close()


def wait_forever(started: Event) -> None:
    started.set()
    signal.pause()


def test_a_forked_data_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    started = fork.Event()
    worker = fork.Process(target=wait_forever, args=(started,))
    worker.start()
    try:
        assert started.wait(30)
        run.close()
        RunDirectory(tmp_path).close()
    finally:
        worker.kill()
        worker.join(30)


def close_inherited(run: RunDirectory, number: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), number)  # another file where the parent has its lock
    run.close()
    os.fstat(number)


def test_closing_in_a_forked_child_closes_nothing_else(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        assert in_child(close_inherited, run, run._lock) == 0


@pytest.mark.parametrize("leftover", ["metrics.jsonl", "checkpoints/step-00000010"])
def test_a_fresh_start_leaves_an_existing_run_alone(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).parent.mkdir(exist_ok=True)
    (tmp_path / leftover).touch()
    with pytest.raises(ConfigError, match=r"holds a run already.*resume="):
        RunDirectory(tmp_path)
    with RunDirectory(tmp_path, restart=True) as run:  # also shows that the refusal let go of the lock
        assert run.holds_run()


def test_what_hydra_and_the_log_put_there_first_is_no_run(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "train.log").touch()
    (tmp_path / "checkpoints").mkdir()
    RunDirectory(tmp_path).close()


@pytest.mark.parametrize("path", ["/proc/self", "/proc/none/run", "{file}", "{file}/run"])
def test_a_place_that_cannot_be_written_is_one_clear_refusal(tmp_path: Path, path: str) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(ConfigError, match=r"^hydra.run.dir=\S+: cannot be written \(.+\); choose") as refusal:
        RunDirectory(Path(path.format(file=file)))
    assert len(refusal.value.problems) == 1
    assert file.read_text() == "kept"


def test_other_ranks_create_and_lock_nothing(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run"):
        RunDirectory(tmp_path / "run", rank=1).close()
    RunDirectory(tmp_path / "other", rank=1)
    assert not (tmp_path / "other").exists()


def test_the_first_failure_stands_until_the_next_attempt(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.write_status("running")
        RunDirectory(tmp_path, rank=1).write_status("failed", reason="disk on fire", step=7)
        for echo in ("failed", "preempted", "finished"):
            run.write_status(echo, reason="peer failed")
        status = status_of(run)
        assert status["status"] == "failed"
        assert (status["reason"], status["rank"], status["step"]) == ("disk on fire", 1, 7)
        run.write_status("running")
        run.write_status("finished")
        assert status_of(run)["status"] == "finished"


def test_a_rank_that_saw_another_fall_silent_can_name_it(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.write_status("failed", reason="silent", rank=3)
        assert status_of(run)["rank"] == 3


def fail(path: Path, rank: int, start: Event) -> None:
    start.wait(30)
    RunDirectory(path, rank=rank).write_status("failed", reason=f"rank {rank}")


def test_ranks_that_fail_together_leave_one_whole_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = fork.Value("i", 0)

    def count(path: Path, text: str) -> None:
        with writes.get_lock():
            writes.value += 1
        write_atomically(path, text)

    monkeypatch.setattr(run_status, "write_atomically", count)
    start = fork.Event()
    ranks = [fork.Process(target=fail, args=(tmp_path, rank, start)) for rank in range(1, 6)]
    for process in ranks:
        process.start()
    start.set()
    for process in ranks:
        process.join(30)
    status = status_of(RunDirectory(tmp_path, rank=9))
    assert status["reason"] == f"rank {status['rank']}"
    assert writes.value == 1


def test_a_damaged_status_is_replaced(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.status.write_text('{"status": "fai')
        run.write_status("finished")
        assert status_of(run)["status"] == "finished"


def test_a_status_that_cannot_be_written_does_not_hide_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    RunDirectory(tmp_path / "gone", rank=1).write_status("failed", reason="the true reason")
    assert "the true reason" in caplog.text


def test_summary_is_standard_json_whatever_the_numbers(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.write_summary(
            {
                "loss": float("nan"),
                "best": [float("inf"), 1.5],
                "t": torch.tensor(2.0),
                "path": tmp_path,
                "n": None,
            }
        )
        text = run.summary.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text) == {"loss": None, "best": [None, 1.5], "t": 2.0, "path": str(tmp_path), "n": None}


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    write_atomically(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_content_is_on_the_disk_before_the_name_and_the_name_before_anyone_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace = os.replace

    def record_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda fd: events.append(os.readlink(f"/proc/self/fd/{fd}")))
    monkeypatch.setattr(os, "replace", record_replace)
    write_atomically(tmp_path / "file", "content")
    content, *rest = events
    assert content.startswith(f"{tmp_path}/.file.")
    assert rest == ["rename", str(tmp_path)]


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_paths(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, rank=1)
    assert [run.log(0).name, run.log(2).name] == ["train.log", "train.rank2.log"]
    paths = [run.metrics, run.tensorboard, run.checkpoints, run.summary, run.status, run.sample, run.attempts]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "metrics.jsonl", "tensorboard", "checkpoints", "summary.json", "status.json", "sample.txt",
        "attempts.json",
    ]  # fmt: skip


def begin_to_write_and_die(path: Path) -> None:
    os.replace = lambda *_: os._exit(9)
    write_atomically(path, "half")


def test_what_a_killed_writer_left_goes_with_the_next_attempt_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "ema").mkdir()
    for name in ("status.json", "ema/model.json"):
        assert in_child(begin_to_write_and_die, tmp_path / name) == 9
    assert len(list(tmp_path.rglob(".*.tmp"))) == 2
    kept = [tmp_path / name for name in (".notes.tmp", "metrics.jsonl", "status.json.0123abcd.tmp")]
    for path in kept:
        path.touch()
    with pytest.raises(ConfigError, match="holds a run already"):
        RunDirectory(tmp_path)
    assert len(list(tmp_path.rglob(".*.tmp"))) == 3, "another run's business"
    RunDirectory(tmp_path, restart=True).close()
    assert list(tmp_path.rglob(".*.tmp")) == [tmp_path / ".notes.tmp"]
    assert all(path.exists() for path in kept)
