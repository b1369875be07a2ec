"""Files that commit af591fd left behind are read, resumed and reported (docs/compatibility.md)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from configs import node
from report_cases import printed, result_of
from safetensors.torch import load_file

from ddp_agent.checkpoint import export
from ddp_agent.checkpoint.__main__ import main as checkpoint
from ddp_agent.checkpoint.folder import manifest_of
from ddp_agent.checkpoint.manifest import Fingerprint, Manifest
from ddp_agent.cli.shipped_values import shipped_values
from ddp_agent.config.registry import build
from ddp_agent.errors import CheckpointError
from ddp_agent.plan.__main__ import main as plan
from ddp_agent.training.checkpoints import _defaults

OLD = Path(__file__).parent / "af591fd"
ROOT = Path(__file__).parents[2]
TYPED = "sync=allreduce,diloco seed=0,1 optimizer=adamw model.hidden=[4] max_steps=40 eval_every=20 checkpoint_every=20"
GROUPS = {
    "model": "mlp", "slicing": "shared", "sync": "diloco", "cadence": "fixed", "reducer": "dense", "optimizer": "adamw",
    "schedule": "constant",
}  # fmt: skip
KEPT = OLD / "sweep" / "3" / "checkpoints" / "step-00000020"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    shutil.copytree(OLD / "sweep", tmp_path / "sweep")
    return tmp_path / "sweep"


def read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_the_sweep_is_resumed_and_ends_as_it_would_have(sweep: Path, tmp_path: Path) -> None:
    """On the machine that wrote the files the weights are the same bit for bit; others add in another order."""
    command = [sys.executable, str(ROOT / "train.py"), "-m", *TYPED.split(), f"hydra.sweep.dir={sweep}"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == 3
    assert "resumed from step 20" in done.stdout
    here, there = (load_file(path / "model.safetensors") for path in (sweep / "3", OLD / "whole"))
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)
    ours, theirs = read(sweep / "3" / "summary.json"), read(OLD / "whole" / "summary.json")
    assert theirs.keys() <= ours.keys()
    costs = ("syncs", "collectives", "payload_bytes", "wire_bytes", "steps", "samples", "params", "data_sha256")
    assert {key: ours[key] for key in costs} == {key: theirs[key] for key in costs}
    steps = [json.loads(line)["step"] for line in (sweep / "3" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [20, 40]
    text = printed(result_of(sweep))
    assert "n=2 seeds" in text, "the seeds of both versions are runs of one setting"


def test_the_sweep_is_reported_and_planned_from(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(sweep)
    assert "allreduce" in printed(result)
    shutil.copy(OLD / "whole" / "summary.json", sweep / "3")
    assert plan([str(sweep), "--rate", "1gbit", "--ranks", "2,8"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_the_checkpoint_is_listed_verified_and_pruned(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["list"], ["verify"], ["prune", "--keep", "1"]):
        assert checkpoint([command[0], str(sweep / "3"), *command[1:]]) == 0
    assert "step-00000020  2 ranks" in capsys.readouterr().out


def test_the_export_scores_what_the_run_said() -> None:
    model = export.load(OLD / "sweep" / "2")
    data = build("dataset", node("dataset", "digits")).load().data
    inputs, target = data.test.tensors
    accuracy = (model(data.transformed(inputs)).argmax(1) == target).float().mean().item()
    assert accuracy == pytest.approx(read(OLD / "sweep" / "2" / "summary.json")["test_metric"])


def with_settings(**changes: Any) -> Fingerprint:
    """What this run would record, with its arguments' defaults."""
    saved = dict(manifest_of(KEPT).fingerprint)
    return Fingerprint(saved | changes, {"slicing": {"tasks": "replicate", "limit": None}, "sync.gone": 3})


def test_a_new_setting_with_its_default_is_no_difference() -> None:
    manifest = manifest_of(KEPT)
    slicing = manifest.fingerprint["slicing"]
    manifest.check_run(KEPT, with_settings(slicing=slicing | {"limit": None}), 2)
    manifest.check_run(KEPT, with_settings(slicing={"name": "Shared", "deal": "round_robin"}), 2)
    with pytest.raises(CheckpointError, match=r"slicing\.limit: the checkpoint has null, this run 5"):
        manifest.check_run(KEPT, with_settings(slicing=slicing | {"limit": 5}), 2)
    with pytest.raises(CheckpointError, match=r"slicing\.new: the checkpoint has nothing, this run 1"):
        manifest.check_run(KEPT, with_settings(slicing=slicing | {"new": 1}), 2)


def without(tree: dict[str, Any], path: str) -> dict[str, Any]:
    group, _, key = path.partition(".")
    inner = {name: value for name, value in tree.get(group, {}).items() if name != key} if key else {}
    return {**{name: value for name, value in tree.items() if name != group}, **({group: inner} if key else {})}


@pytest.mark.parametrize(
    "setting",
    ["slicing.tasks", "slicing.deal", "sync.nesterov", "sync.buffers", "sync.optimizer_state", "optimizer.beta1",
     "optimizer.eps", "schedule.warmup_steps", "ema_decay", "clip_norm", "accumulation_steps", "precision", "cadence",
     "schedule", "slicing", "reducer"],
)  # fmt: skip
def test_each_setting_that_has_its_default_may_be_missing_in_a_checkpoint(setting: str) -> None:
    """Of the run that wrote the files, which this version continues."""
    kept = manifest_of(KEPT)
    groups = {group: node(group, name) for group, name in GROUPS.items()}
    settings: Any = SimpleNamespace(cfg=groups, options=SimpleNamespace(trusted_packages=[]))
    ours = Fingerprint(kept.fingerprint, _defaults(settings, shipped_values(groups)))
    ours.update({group: dict(kept.fingerprint[group]) for group in GROUPS})
    Manifest(**vars(kept) | {"fingerprint": without(dict(kept.fingerprint), setting)}).check_run(KEPT, ours, 2)
    other = Fingerprint(changed(dict(ours), setting), ours.defaults)
    with pytest.raises(CheckpointError, match=setting.replace(".", r"\.")):
        Manifest(**vars(kept) | {"fingerprint": without(dict(kept.fingerprint), setting)}).check_run(KEPT, other, 2)


def changed(tree: dict[str, Any], path: str) -> dict[str, Any]:
    group, _, key = path.partition(".")
    if isinstance(tree[group], dict):
        return tree | {group: tree[group] | {key or "name": "another"}}
    return tree | {group: "another"}


@pytest.mark.parametrize(("value", "admitted"), [(3, True), (4, False)])
def test_a_retired_setting_is_admitted_with_the_value_that_is_left(value: int, admitted: bool) -> None:
    kept = vars(manifest_of(KEPT))
    earlier = Manifest(**kept | {"fingerprint": kept["fingerprint"] | {"sync.gone": value}})
    if admitted:
        earlier.check_run(KEPT, with_settings(), 2)
    else:
        with pytest.raises(CheckpointError, match=r"sync\.gone: the checkpoint has 4, this run 3"):
            earlier.check_run(KEPT, with_settings(), 2)


def test_the_files_name_no_machine() -> None:
    for file in OLD.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [word for word in (b"/tmp", b"/root", b"/opt", b"127.0.0.1") if word in content], file
