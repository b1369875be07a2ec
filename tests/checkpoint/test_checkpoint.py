"""Checkpoints of one rank, without a process group: content, deletion of old ones, and failing writes."""

import collections
import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_cases import (
    FINGERPRINT,
    Payload,
    content_of,
    flip_a_bit,
    is_state_of,
    load,
    names,
    same,
    save,
    truncate,
)

from ddp_agent.checkpoint import folder, loading, saving
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.errors import CheckpointError


def test_what_comes_back_is_bitwise_what_went_in(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": {"torch": torch.get_rng_state(), "python": random.getstate()},
        "tensors": [torch.randn(3).to(dtype) for dtype in (torch.bfloat16, torch.float64, torch.int64)],
        "others": {"inf": float("inf"), "third": 1 / 3, "big": 2**200, "none": None, 7: [True, ("a", -0.0)]},
    }
    saving.save(tmp_path, 5, state, comm=LocalComm(), fingerprint={}, details={}, keep=1)
    loaded = loading.load(tmp_path, comm=LocalComm(), fingerprint={})
    assert loaded is not None
    assert loaded[0] == 5
    assert same(loaded[1], state)


def test_the_files_are_what_the_manifest_says(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "checkpoints", 120, details={"position": 3})
    assert path == tmp_path / "new" / "checkpoints" / "step-00000120"
    assert names(path.parent) == ["step-00000120"]
    assert names(path) == ["manifest.json", "rank-0000.pt"]
    content = (path / "rank-0000.pt").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    assert manifest == {
        "format": 1,
        "step": 120,
        "world_size": 1,
        "fingerprint": FINGERPRINT,
        "details": {"position": 3},
        "files": {"rank-0000.pt": {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
    }


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (Path("x"), "Path"),
        ({1, 2}, "set"),
        (collections.defaultdict(int), "defaultdict"),
        (Payload(Path("x")), "Payload"),
        (b"bytes", "bytes"),
    ],
)
def test_a_state_that_could_not_be_loaded_is_not_saved(value: object, found: str, tmp_path: Path) -> None:
    state = {"optimizer": {"groups": [{"lr": 0.1}, {"lr": value}]}}
    with pytest.raises(CheckpointError, match=rf"state\['optimizer'\]\['groups'\]\[1\].*: found .*{found}"):
        saving.save(tmp_path, 1, state, comm=LocalComm(), fingerprint={}, details={}, keep=1)
    assert names(tmp_path) == []


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert load(tmp_path / "missing") is None
    (tmp_path / "step-00000010.tmp-0123abcd").mkdir()
    (tmp_path / "notes").mkdir()
    assert load(tmp_path) is None


def test_the_newest_is_loaded_whatever_the_order(tmp_path: Path) -> None:
    for step in (9, 100_000_000, 1000):
        save(tmp_path, step)
    assert [path.name for path in folder.newest(tmp_path)] == [
        "step-100000000",
        "step-00001000",
        "step-00000009",
    ]
    assert is_state_of(load(tmp_path), 100_000_000)


def test_a_step_saved_before_is_left_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    before = content_of(tmp_path)
    assert save(tmp_path, 5, details={"mode": "other"}) == path
    assert content_of(tmp_path) == before


def test_another_runs_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5)
    before = content_of(tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        save(tmp_path, 5, fingerprint=FINGERPRINT | {"parameters": 98})
    assert content_of(tmp_path) == before


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    with pytest.raises(ValueError, match="keep: found 0"):
        save(tmp_path, 6, keep=0)


def test_damaged_later_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    for step in (20, 30):
        truncate(tmp_path / f"step-000000{step}" / "rank-0000.pt")
    save(tmp_path, 15, keep=2)
    assert is_state_of(load(tmp_path), 15)
    assert "step-00000010" in names(tmp_path)


def test_a_damaged_step_reached_again_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    flip_a_bit(path / "rank-0000.pt")
    damaged = (path / "rank-0000.pt").read_bytes()
    save(tmp_path, 20)
    assert is_state_of(load(tmp_path), 20)
    (aside,) = tmp_path.glob("step-00000020.damaged-*")
    assert (aside / "rank-0000.pt").read_bytes() == damaged
    assert str(aside) in caplog.text


def test_leftovers_are_ignored_then_removed_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 10)
    leftovers = ["step-00000020.tmp-0123abcd", "step-00000030.tmp-89abcdef"]
    for name in leftovers:
        shutil.copytree(tmp_path / "step-00000010", tmp_path / name)
    (tmp_path / "step-mine.tmp").mkdir()
    assert is_state_of(load(tmp_path), 10)
    assert caplog.text == ""
    save(tmp_path, 20)
    assert names(tmp_path) == ["step-00000010", "step-00000020", "step-mine.tmp"]
    (line,) = caplog.messages
    assert all(name in line for name in leftovers)


def test_loading_changes_nothing_on_disk(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    flip_a_bit(tmp_path / "step-00000020" / "rank-0000.pt")
    (tmp_path / "step-00000030.tmp-0123abcd").mkdir()
    before, listed = content_of(tmp_path), names(tmp_path)
    load(tmp_path)
    assert (content_of(tmp_path), names(tmp_path)) == (before, listed)


def test_another_runs_checkpoint_is_refused_with_every_difference(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    other = {"model": {"name": "MLP", "hidden": (16,)}, "sync": {"name": "LocalSGD"}, "seed": 1}
    with pytest.raises(CheckpointError) as raised:
        load(tmp_path, other)
    first, *differences, remedy = str(raised.value).splitlines()
    assert str(path) in first
    assert [line.strip() for line in differences] == [
        "model.hidden: the checkpoint has [8], this run [16]",
        "parameters: the checkpoint has 99, this run nothing",
        "seed: the checkpoint has nothing, this run 1",
        'sync.name: the checkpoint has "DiLoCo", this run "LocalSGD"',
    ]
    assert "Type the settings of that run to continue it, or leave resume out" in remedy


def test_lists_and_tuples_are_alike_in_a_fingerprint(tmp_path: Path) -> None:
    save(tmp_path, 10, fingerprint={"hidden": (8, 4)})
    assert is_state_of(load(tmp_path, {"hidden": [8, 4]}), 10)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "tiny"
    directory.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", directory], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system of 256 kB cannot be mounted here (needs root)")
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_a_full_disk_is_named_and_costs_no_checkpoint(tiny_disk: Path) -> None:
    save(tiny_disk, 10)
    state = {"weights": torch.zeros(100_000)}
    with pytest.raises(CheckpointError, match=r"rank-0000\.pt: No space left on device"):
        saving.save(tiny_disk, 20, state, comm=LocalComm(), fingerprint=FINGERPRINT, details={}, keep=1)
    assert names(tiny_disk) == ["step-00000010"]
    assert is_state_of(load(tiny_disk), 10)


def test_what_reads_back_differently_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 10)
    sync = os.fsync

    def lose_a_bit(descriptor: int) -> None:
        sync(descriptor)
        os.pwrite(descriptor, b"\0", 100)

    monkeypatch.setattr("os.fsync", lose_a_bit)
    with pytest.raises(CheckpointError, match=r"rank-0000\.pt: damaged, found sha256"):
        save(tmp_path, 20, keep=1)
    assert names(tmp_path) == ["step-00000010"]
