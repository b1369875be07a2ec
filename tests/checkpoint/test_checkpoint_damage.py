"""Damaged, foreign and hostile checkpoints are refused by name, and the one before is loaded."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_cases import (
    Payload,
    empty,
    fill_with_zeros,
    flip_a_bit,
    is_state_of,
    load,
    save,
    truncate,
    write_another_format,
)

from ddp_agent.checkpoint.manifest import File, Manifest
from ddp_agent.errors import CheckpointError


@pytest.mark.parametrize("file", ["rank-0000.pt", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, empty, fill_with_zeros, flip_a_bit, write_another_format, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    file: str, damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10)
    victim = save(tmp_path, 20) / file
    damage(victim)
    assert is_state_of(load(tmp_path), 10)
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(victim) in line.getMessage()
    assert re.search(r"found|damaged|No such file|not the manifest", line.getMessage())


def test_a_flipped_bit_in_any_byte_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, 20)
    before, content = Manifest.read(path), (path / "manifest.json").read_bytes()
    noticed = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        (path / "manifest.json").write_bytes(flipped)
        try:
            assert Manifest.read(path) == before  # a space that became another kind of space
        except CheckpointError:
            noticed += 1
    assert noticed > len(content) // 2


def test_a_checkpoint_under_another_steps_name_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20).rename(tmp_path / "step-00000030")
    assert is_state_of(load(tmp_path), 10)


def test_when_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    for step in (10, 20):
        truncate(save(tmp_path, step) / "rank-0000.pt")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged") as raised:
        load(tmp_path)
    assert "step-00000010" in str(raised.value)
    assert "step-00000020" in str(raised.value)


def plant(path: Path, state: object) -> None:
    """Return a hostile checkpoint with correct sizes and hashes."""
    torch.save(state, path / "rank-0000.pt")
    manifest = vars(Manifest.read(path)) | {"files": {"rank-0000.pt": File.of(path / "rank-0000.pt")}}
    Manifest(**manifest).write(path)


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, proof = save(tmp_path, 10), tmp_path / "ran"
    plant(path, {"weights": Payload(proof)})
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match=r"rank-0000\.pt: refused by .*, it names \w+\.mkdir") as raised:
        load(tmp_path)
    assert not proof.exists()
    assert "weights_only" not in str(raised.value)  # no advice to load it all the same
    torch.load(path / "rank-0000.pt", weights_only=False)
    assert proof.exists()


def test_a_state_that_is_no_dict_is_refused(tmp_path: Path) -> None:
    plant(save(tmp_path, 10), torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"rank-0000\.pt: found a Tensor, expected a dict"):
        load(tmp_path)
