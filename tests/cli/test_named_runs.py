"""TensorBoard's names for the runs of a sweep."""

import json
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
from launching import type_in

from ddp_agent.cli.named_runs import link, logdir


def named(sweep: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in (sweep / "tensorboard").iterdir()}


def test_a_job_s_event_files_are_found_under_its_overrides(tmp_path: Path) -> None:
    for number, overrides in enumerate((["sync=diloco", "seed=1"], ["sync=diloco", "seed=2"], [])):
        link(tmp_path / str(number), tmp_path, overrides)
    expected = {"sync=diloco,seed=1": "../0/tensorboard", "sync=diloco,seed=2": "../1/tensorboard"}
    assert named(tmp_path) == expected | {"defaults": "../2/tensorboard"}
    link(tmp_path / "0", tmp_path, ["sync=diloco", "seed=1"])  # resumed
    assert len(named(tmp_path)) == 3 and logdir(tmp_path) == tmp_path / "tensorboard"


def test_tensorboard_itself_calls_them_so(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for number, mode in enumerate(("allreduce", "diloco")):
        link(tmp_path / str(number), tmp_path, [f"sync={mode}"])
        with SummaryWriter(str(tmp_path / str(number) / "tensorboard")) as writer:
            writer.add_scalar("loss", 1.0, 1)
    multiplexer = import_module("tensorboard.backend.event_processing.plugin_event_multiplexer").EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir(tmp_path)))
    assert set(multiplexer.Runs()) == {"sync=allreduce", "sync=diloco"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["data_root=/usr/share/data", "run_name='..'"],
        ["a=" + "x" * 300, "b=1"],
        ["name=\n\x1b[31mred", "é=ü" * 100],
        ["/"],
        [".."],
    ],
)
def test_any_overrides_make_one_name_in_the_folder(overrides: Sequence[str], tmp_path: Path) -> None:
    link(tmp_path / "0", tmp_path, overrides)
    link(tmp_path / "1", tmp_path, [*overrides])
    (first, second) = sorted(named(tmp_path).items(), key=lambda pair: pair[1])
    assert (first[1], second[1]) == ("../0/tensorboard", "../1/tensorboard")
    assert second[0] == f"{first[0]} (1)" and len(second[0].encode()) < 200 and second[0].isprintable()


def test_a_folder_that_leads_elsewhere_gets_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "tensorboard").symlink_to(tmp_path / "elsewhere")
    link(sweep / "0", sweep, ["seed=1"])
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert logdir(sweep) == sweep


@pytest.mark.usefixtures("own_environment")
def test_a_sweep_names_its_jobs(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddp_agent.cli.sweep_job._run", lambda command, run_dir, cwd, attempts: 0)
    monkeypatch.setattr("ddp_agent.cli.sweep_job._objective", lambda run_dir: None)
    assert type_in(monkeypatch, project, "-m", "seed=0,1", "sync=allreduce", "api_token=abcdef") == 0
    names = {tuple(json.loads(path.read_text())["overrides"]) for path in (tmp_path / "multirun").glob("*/job.json")}
    assert len(names) == 2
    assert set(named(tmp_path / "multirun")) == {",".join(each).replace("<", "_").replace(">", "_") for each in names}
    assert not any("abcdef" in name for name in named(tmp_path / "multirun"))
