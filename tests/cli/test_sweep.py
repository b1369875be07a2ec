"""Sweeps: each job in processes and a directory of its own, one message per failure, resumable."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from launching import type_in
from report_cases import make_run

from ddp_agent.cli import interruption, sweep, sweep_end, sweep_job
from ddp_agent.cli.composition import NPROC_PER_NODE, RUN_DIR, RUN_TIME, Configs
from ddp_agent.cli.sweep_record import SweepRecord
from ddp_agent.distributed.process import EARLIER_ATTEMPTS, TorchrunEnvironment
from ddp_agent.errors import ConfigError, RefusedError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("own_environment")


def test_a_sweep_on_several_nodes_is_refused_with_the_command_to_use() -> None:
    environment = TorchrunEnvironment(world_size=8, local_world_size=4)
    with pytest.raises(ConfigError, match=r"found 2 nodes") as refused:
        sweep.refuse_several_nodes(environment, ["seed=0,1", "run_name=a b"])
    assert "python train.py -m nproc_per_node=4 seed=0,1 'run_name=a b'" in str(refused.value)
    sweep.refuse_several_nodes(TorchrunEnvironment(world_size=4, local_world_size=4), [])


@pytest.mark.parametrize(("node_rank", "code"), [(0, 0), (1, 2)])
def test_only_rank_0_drives_a_sweep(
    node_rank: int, code: int, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        TorchrunEnvironment,
        "read",
        lambda: TorchrunEnvironment(rank=1, world_size=4, local_world_size=2, node_rank=node_rank),
    )
    monkeypatch.setattr("ddp_agent.cli.command.die_with_parent", lambda: None)
    assert type_in(monkeypatch, project, "-m", "seed=0,1") == code
    assert [file.name for file in tmp_path.iterdir()] == ["project"]


# Sweeps, with a job that is no torchrun

JOB = """
import json, os, sys
from pathlib import Path
run_dir = Path(os.environ["DDP_AGENT_RUN_DIR"])
report = {"argv": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ)}
(run_dir / "report.json").write_text(json.dumps(report))
if "seed=1" in sys.argv:
    (run_dir / "status.json").write_text(json.dumps({"status": "failed", "reason": "loss is nan"}))
    sys.exit(5)
if "seed=2" in sys.argv:
    sys.exit(1)
(run_dir / "summary.json").write_text(json.dumps({"best_metric": 0.25}))
"""


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    return [sys.executable, str(script)]


def sweep_over(configs: Configs, job: Sequence[str], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *overrides])
    return sweep.run(configs, job, overrides)


def test_each_job_is_told_its_directory_and_what_to_do(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "outer")
    monkeypatch.setenv(NPROC_PER_NODE, "3")
    monkeypatch.setenv(RUN_TIME, "the sweep's")
    code = sweep_over(
        configs,
        job,
        monkeypatch,
        "seed=3,4",
        "sync=glob(local*)",
        "run_name='a=1,b'",
        "hydra.sweep.subdir='${hydra.job.override_dirname}'",
    )
    assert code == 0
    for number, seed in enumerate((3, 4)):
        directory = tmp_path / "multirun" / f"run_name='a=1,b',seed={seed},sync=local_sgd"
        report = json.loads((directory / "report.json").read_text())
        assert sorted(report["argv"]) == [
            f"hydra.job.num={number}",
            "run_name='a=1,b'",
            f"seed={seed}",
            "sync=local_sgd",
        ]
        assert report["cwd"] == str(tmp_path)
        assert report["environment"][RUN_DIR] == str(directory)
        assert report["environment"][NPROC_PER_NODE] == "3"
        assert not {"RANK", "TORCHELASTIC_RUN_ID", RUN_TIME} & set(report["environment"])
        assert not (directory / "train.log").exists(), "Hydra's log would be in the way of ours"


def test_a_swept_mode_may_be_given_what_the_default_has_not(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert sweep_over(configs, job, monkeypatch, "sync=choice(local_sgd)", "sync.period=4", "seed=3") == 0
    assert json.loads((tmp_path / "multirun" / "0" / "report.json").read_text())["argv"] == [
        "sync=local_sgd",
        "sync.period=4",
        "seed=3",
        "hydra.job.num=0",
    ]
    with pytest.raises(ConfigError, match=r"sync\.perod"):
        sweep_over(configs, job, monkeypatch, "sync=choice(local_sgd)", "sync.perod=4")


def test_a_failed_job_is_told_and_the_others_run(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sweep_over(configs, job, monkeypatch, "seed=0,1,2,3") == 1
    said = capfd.readouterr().err
    for failure in ("job 1 (seed=1) failed: loss is nan", "job 2 (seed=2) failed: exit code 1"):
        assert said.count(failure) == 2, "at once, and at the end"
    assert "job 0" not in said
    assert "job 3" not in said
    assert (tmp_path / "multirun" / "3" / "summary.json").exists()


def reports(sweep_dir: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sweep_dir.glob("*/report.json")}


def test_a_directory_named_by_overrides_is_short_enough_and_holds_no_secret(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A name of more than 255 bytes would end the whole sweep."""
    typed = ["seed=3,4", f"+note='{'é' * 200}'", "+api_token=canary-1", "+url=https://me:canary-2@a/?canary-3"]
    subdirs = ("'${hydra.job.override_dirname}'", "'${hydra.job.num}-${note}-${note}'")
    for count, subdir in enumerate(subdirs, start=1):
        for _ in range(2):  # the names are the same again: a sweep is resumed by them
            assert sweep_over(configs, job, monkeypatch, *typed, f"hydra.sweep.subdir={subdir}") == 0
        named = [path.parent for path in tmp_path.glob("multirun/**/report.json")]
        assert len(named) == 2 * count
    assert all(len(name.encode()) <= 255 for path in named for name in path.parts)
    assert not [path for path in tmp_path.glob("multirun/**") if "canary" in str(path)]


@pytest.mark.parametrize("subdir", ["'${api_token}-${hydra.job.num}'", "'canary-1-${hydra.job.num}'"])
def test_a_secret_is_no_name_of_a_directory(
    subdir: str, configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.subdir: it holds a secret"):
        sweep_over(configs, job, monkeypatch, "seed=3,4", "+api_token=canary-1", f"hydra.sweep.subdir={subdir}")
    assert not list(tmp_path.rglob("*canary*"))


def test_a_sweep_that_cannot_make_its_directory_says_so(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for directory in ("file/a", "a" * 300):
        with pytest.raises(RefusedError, match=r": (Not a directory|File name too long)"):
            sweep_over(configs, job, monkeypatch, "seed=3,4", f"hydra.sweep.dir={tmp_path / directory}")


def test_an_interrupted_sweep_goes_on(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One job has finished, one was stopped, one had not begun."""
    sweep_dir = tmp_path / "multirun"
    assert sweep_over(configs, job, monkeypatch, "seed=0,3") == 0
    for name, state in (("0", "finished"), ("1", "running")):
        (sweep_dir / name / "status.json").write_text(json.dumps({"status": state}))
        (sweep_dir / name / "report.json").unlink()
    capfd.readouterr()
    assert sweep_over(configs, job, monkeypatch, "seed=0,3,4") == 0
    found = reports(sweep_dir)
    assert set(found) == {"1", "2"}
    assert [found[name]["environment"][EARLIER_ATTEMPTS] for name in ("1", "2")] == ["1", "0"]
    assert f"job 0 (seed=0): finished before, in {sweep_dir / '0'}" in capfd.readouterr().out


def test_another_sweeps_directory_is_not_taken(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sweep_over(configs, job, monkeypatch, "seed=0") == 0
    (tmp_path / "multirun" / "0" / "report.json").unlink()
    assert sweep_over(configs, job, monkeypatch, "seed=3") == 1
    assert not reports(tmp_path / "multirun")
    assert "holds a job of another sweep (seed=0)" in capfd.readouterr().err
    for damaged in ("{", '{"overrides": [true], "attempts": 2}'):
        (tmp_path / "multirun" / "0" / "job.json").write_text(damaged)
        assert sweep_over(configs, job, monkeypatch, "seed=0") == 1
        assert "job.json cannot be read" in capfd.readouterr().err


def test_a_sweeper_that_optimises_sees_the_best_metric(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    call = sweep_job.Job.__call__

    def listen(self: sweep_job.Job, cfg: Any) -> float | None:
        seen.append(call(self, cfg))
        return seen[-1]

    monkeypatch.setattr(sweep_job.Job, "__call__", listen)
    assert sweep_over(configs, job, monkeypatch, "seed=0") == 0
    assert seen == [0.25]


def test_optuna_finds_its_way(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install -e '.[optuna]'")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    assert sweep_over(configs, job, monkeypatch, *search, "hydra.sweeper.direction=maximize", "seed=range(3,9)") == 0
    assert set(reports(tmp_path / "multirun")) == {"0", "1", "2"}
    results = (tmp_path / "multirun" / "optimization_results.yaml").read_text()
    assert "best_value: 0.25" in results, "what the jobs' summaries say"


SLOW_JOB = """
import os, signal, sys, time
from pathlib import Path
run_dir = Path(os.environ["DDP_AGENT_RUN_DIR"])
def stop(*_):
    (run_dir / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(run_dir / "started").write_text(str(os.getpid()))
time.sleep(600)
"""

DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from pathlib import Path
from ddp_agent.cli import sweep
from ddp_agent.cli.composition import Configs
configs = Configs(folder=Path(sys.argv.pop(1)), name="config")
sys.exit(sweep.run(configs, [sys.executable, sys.argv.pop(1)], sys.argv[2:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_sweep_lets_its_job_save_and_starts_no_other(
    number: signal.Signals, code: int, configs: Configs, tmp_path: Path
) -> None:
    for name, text in (("job.py", SLOW_JOB), ("driver.py", DRIVER)):
        (tmp_path / name).write_text(text)
    command = [sys.executable, "driver.py", str(configs.folder), str(tmp_path / "job.py"), "-m", "seed=0,1"]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    first = tmp_path / "multirun" / "0"
    while not (first / "started").exists() or not (first / "started").read_text():
        assert driver.poll() is None
        time.sleep(0.02)
    driver.send_signal(number)
    assert driver.wait(timeout=60) in (code, -number)
    assert (first / "saved").exists(), "the job was told, and waited for"
    assert not (tmp_path / "multirun" / "1").exists()


DEAF_JOB = """
import os, time
from pathlib import Path
(Path(os.environ["DDP_AGENT_RUN_DIR"]) / "started").write_text(str(os.getpid()))
time.sleep(600)
"""


def test_a_job_that_is_stopped_while_it_imports_gets_its_status_from_the_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The signal meets the very call that starts the job."""
    started: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def interrupted(*arguments: Any, **named: Any) -> Any:
        started.append(original(*arguments, **named))
        os.kill(os.getpid(), signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", "step": 7}))
    with pytest.raises(SystemExit) as stop, interruption.raised():
        sweep_job._run([sys.executable, "-c", DEAF_JOB], tmp_path, str(tmp_path), 0)
    assert stop.value.code == 143
    assert started[0].returncode == -signal.SIGTERM
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["step"]) == ("failed", 7)
    assert status["reason"] == "SIGTERM: stopped before it could save"


@pytest.mark.parametrize(
    ("code", "reason"), [("os._exit(3)", "exit code 3"), ("os.kill(os.getpid(), 9)", "ended by SIGKILL")]
)
def test_a_job_that_dies_without_a_word_gets_its_status_from_the_sweep(code: str, reason: str, tmp_path: Path) -> None:
    assert sweep_job._run([sys.executable, "-c", f"import os; {code}"], tmp_path, str(tmp_path), 0) != 0
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["reason"], status["rank"]) == ("failed", reason, None)


def test_signals_that_are_ignored_stay_ignored_in_a_sweep() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.raised():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_end_of_a_sweep_lists_its_jobs_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DDP_AGENT_FAILURES", raising=False)
    sweep_dir = tmp_path / "a=b, c"
    record = SweepRecord.begin(tmp_path / "jobs", 3)
    for number, mode in enumerate(("allreduce", "local_sgd", "gossip")):
        run = make_run(sweep_dir / str(number), sync=mode)
        record.note("started", job=number, overrides=["max_steps=9", f"sync={mode}"], run_dir=str(run))
    (run / "status.json").write_text('{"status": "failed", "reason": "why"}')
    assert sweep_end.ended(record, sweep_dir, None) == 0
    said = capsys.readouterr().out
    assert re.search(r"^3 jobs:\n    0  finished   accuracy 0\.\d+ +sync=allreduce\n    1 ", said, re.M)
    assert re.search(r"^    2  failed .* sync=gossip$", said, re.M)
    page = sweep_dir / "report" / "index.html"
    assert page.is_file()
    assert f"  report: {page}\n  tensorboard --logdir '{sweep_dir}'\n  python -m ddp_agent.report '{sweep_dir}'" in said
    page.unlink()
    (sweep_dir / "report" / "report.json").write_text("{}")  # nobody's: the report does not write over it
    assert sweep_end.ended(record, sweep_dir, "job 2 failed: why") == 1
    printed = capsys.readouterr()
    assert "no report: " in printed.out and "not written by a report" in printed.out
    assert f"""hydra.sweep.dir="{sweep_dir}\"""" in printed.err


def test_a_sweep_knows_how_many_jobs_are_left(
    configs: Configs, job: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweep_over(configs, job, monkeypatch, "seed=3,4", "sync=local_sgd,allreduce") == 0
    places = re.findall(r"\((\d of \d)(, about .* left)?\)", capfd.readouterr().out)
    assert [place for place, _ in places] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert [bool(left) for _, left in places] == [False, True, True, True]
