"""Checkpoints of several ranks. Functions on the ranks return results: an exception there would cost new processes."""

import contextlib
import io
import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from checkpoint_cases import FINGERPRINT, State, flip_a_bit, is_state_of, load, names, save, state_at, truncate
from rank_pool import RankError, RankPool

from ddp_agent.checkpoint import folder, saving
from ddp_agent.checkpoint.manifest import Manifest
from ddp_agent.distributed.ledger import CommStats
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.errors import CheckpointError


def save_and_load(directory: Path, steps: list[int]) -> tuple[bool, CommStats]:
    comm = world_comm()
    for step in steps:
        save(directory, step, comm=comm)
    return is_state_of(load(directory), steps[-1], comm.rank), comm.stats


def try_to_load(directory: Path, fingerprints: list[State] | None = None) -> str:
    comm = world_comm()
    try:
        loaded = load(directory, fingerprints[comm.rank] if fingerprints else FINGERPRINT)
    except CheckpointError as error:
        return str(error)
    return "none" if loaded is None else f"step {loaded[0]} of rank {loaded[1]['rank']}"


def save_with_a_limit(directory: Path, step: int, limited_rank: int, limit_bytes: int) -> str:
    comm = world_comm()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if comm.rank == limited_rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        save(directory, step, keep=1, comm=comm)
    except CheckpointError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return "saved"


def save_with_a_foreign_type(directory: Path, step: int) -> str:
    comm = world_comm()
    state = state_at(step) | ({"path": directory} if comm.rank == 1 else {})
    try:
        saving.save(directory, step, state, comm=comm, fingerprint=FINGERPRINT, details={}, keep=1)
    except CheckpointError as error:
        return str(error)
    return "saved"


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_and_die(file: io.FileIO, data: bytes) -> None:
    os.write(file.fileno(), data[: len(data) // 2])
    die()


def delete_half_and_die(directory: Path) -> None:
    next(directory.glob("rank-*")).unlink()
    die()


CRASHES: dict[str, tuple[int, str, Callable[..., None]]] = {
    "half a file": (1, "ddp_agent.checkpoint.saving.HashedFile.write", write_half_and_die),
    "before the manifest": (0, "ddp_agent.checkpoint.manifest.write_atomically", die),
    "before the rename": (0, "pathlib.Path.rename", die),
    "before an old one is deleted": (0, "ddp_agent.checkpoint.saving._prune", die),
    "while an old one is deleted": (0, "shutil.rmtree", delete_half_and_die),
}


def save_and_die(directory: Path, step: int, crash: str) -> None:
    comm = world_comm()
    rank, target, replacement = CRASHES[crash]
    with mock.patch(target, replacement) if comm.rank == rank else contextlib.nullcontext():
        save(directory, step, keep=1, comm=comm)


@pytest.mark.parametrize("ranks", ["ranks2", "ranks3"])
def test_every_rank_gets_its_own_state_and_no_traffic_is_counted(
    ranks: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pool: RankPool = request.getfixturevalue(ranks)
    assert pool.run(save_and_load, tmp_path, [3, 6]) == [(True, CommStats())] * pool.size
    assert names(tmp_path) == ["step-00000003", "step-00000006"]


def test_damage_to_one_ranks_file_sends_all_ranks_back(ranks3: RankPool, tmp_path: Path) -> None:
    ranks3.run(save_and_load, tmp_path, [3, 6])
    flip_a_bit(tmp_path / "step-00000006" / "rank-0002.pt")
    assert ranks3.run(try_to_load, tmp_path) == [f"step 3 of rank {rank}" for rank in range(3)]
    truncate(tmp_path / "step-00000003" / "rank-0001.pt")
    messages = ranks3.run(try_to_load, tmp_path)
    assert len(set(messages)) == 1
    assert "step-00000006/rank-0002.pt: damaged" in messages[0]
    assert "step-00000003/rank-0001.pt: found" in messages[0]


def test_ranks_agree_that_there_is_no_checkpoint(ranks2: RankPool, tmp_path: Path) -> None:
    assert ranks2.run(try_to_load, tmp_path) == ["none", "none"]


def test_another_number_of_ranks_is_refused(ranks2: RankPool, ranks3: RankPool, tmp_path: Path) -> None:
    ranks2.run(save_and_load, tmp_path, [3])
    assert set(ranks3.run(try_to_load, tmp_path)) == {
        f"rank 0: {tmp_path}/step-00000003 belongs to another run\n  world_size: the checkpoint has 2, this run 3; "
        "resume_other_ranks=true admits that where all ranks were identical"
    }


def test_a_difference_on_one_rank_stops_all(ranks2: RankPool, tmp_path: Path) -> None:
    ranks2.run(save_and_load, tmp_path, [3])
    messages = ranks2.run(try_to_load, tmp_path, [FINGERPRINT, FINGERPRINT | {"parameters": 98}])
    assert len(set(messages)) == 1
    assert re.search(r"^rank 1: [\s\S]*parameters: the checkpoint has 99, this run 98", messages[0])


def test_a_rank_that_cannot_write_stops_all_and_nothing_is_lost(ranks3: RankPool, tmp_path: Path) -> None:
    ranks3.run(save_and_load, tmp_path, [3])
    messages = ranks3.run(save_with_a_limit, tmp_path, 6, 1, 700)
    assert len(set(messages)) == 1
    assert re.search(r"step-00000006 was not saved, .*rank 1: .*rank-0001\.pt: File too large", messages[0])
    assert names(tmp_path) == ["step-00000003"]
    assert ranks3.run(save_with_a_limit, tmp_path, 6, 1, -1) == ["saved"] * 3
    assert names(tmp_path) == ["step-00000006"]


def test_a_rank_with_a_state_it_cannot_save_stops_all(ranks2: RankPool, tmp_path: Path) -> None:
    messages = ranks2.run(save_with_a_foreign_type, tmp_path, 6)
    assert len(set(messages)) == 1
    assert re.search(r"rank 1: state\['path'\]: found pathlib\.\w*Path", messages[0])
    assert names(tmp_path) == []


@pytest.mark.parametrize("crash", CRASHES)
def test_a_rank_killed_while_saving_costs_no_checkpoint(ranks2: RankPool, crash: str, tmp_path: Path) -> None:
    ranks2.run(save_and_load, tmp_path, [3])
    with pytest.raises(RankError, match="exit code -9"):
        ranks2.run(save_and_die, tmp_path, 6, crash, timeout_s=20)
    for path in folder.newest(tmp_path):
        assert Manifest.read(path).files.keys() <= set(names(path))
    step = 6 if "an old one" in crash else 3
    assert ranks2.run(try_to_load, tmp_path) == [f"step {step} of rank {rank}" for rank in range(2)]
    assert ranks2.run(save_and_load, tmp_path, [9]) == [(True, CommStats())] * 2
    assert not [name for name in names(tmp_path) if ".tmp-" in name]
