"""A checkpoint of another number of ranks is refused, unless it is asked for and all ranks were identical."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_pool import RankPool
from runs import config, run
from torch import Tensor

PLAIN = ("optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0")
MOMENTUM = ("optimizer.momentum=0.9", "optimizer.nesterov=false")
ALLOWED = "resume_other_ranks=true"


def parts(*typed: str, source: Path | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    cfg, choices = config(*typed)
    return cfg | {"resume": None if source is None else str(source)}, choices


def state(run_dir: Path, step: int, rank: int = 0) -> dict[str, Any]:
    file = run_dir / "checkpoints" / f"step-{step:08d}" / f"rank-{rank:04d}.pt"
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def weights(run_dir: Path, step: int) -> Tensor:
    flat: Tensor = state(run_dir, step)["weights"][0]
    return flat


@pytest.mark.parametrize(("optimizer", "goes_on"), [(PLAIN, True), (MOMENTUM, False)])
def test_three_ranks_go_on_where_two_stopped(
    ranks2: RankPool, ranks3: RankPool, tmp_path: Path, optimizer: tuple[str, ...], goes_on: bool
) -> None:
    """The mean gradient of N ranks is that of one large batch, so N has no influence. Momentum is reset."""
    ranks2.run(run, *parts("sync=allreduce", *optimizer), str(tmp_path / "whole"))
    ranks2.run(run, *parts("sync=allreduce", *optimizer, "max_steps=4"), str(tmp_path / "two"))
    resumed = parts("sync=allreduce", *optimizer, ALLOWED, source=tmp_path / "two")
    summary = ranks3.run(run, *resumed, str(tmp_path / "three"))[0]
    assert isinstance(summary, dict), summary
    off = (weights(tmp_path / "three", 8) - weights(tmp_path / "whole", 8)).abs().max().item()
    assert (off < 1e-6) == goes_on, off


def test_the_outer_optimizer_goes_on_and_the_inner_one_starts_from_scratch(
    ranks2: RankPool, ranks3: RankPool, tmp_path: Path
) -> None:
    diloco = ("sync=diloco", "sync.period=4", *MOMENTUM)
    ranks2.run(run, *parts(*diloco, "max_steps=4"), str(tmp_path / "two"))
    before = state(tmp_path / "two", 4)
    ranks3.run(run, *parts(*diloco, "max_steps=5", ALLOWED, source=tmp_path / "two"), str(tmp_path / "three"))
    after = [state(tmp_path / "three", 5, rank) for rank in range(3)]
    for rank in range(3):
        assert torch.equal(after[rank]["sync"]["anchor"], before["sync"]["anchor"])
        assert torch.equal(after[rank]["sync"]["momentum"], before["sync"]["momentum"])
        assert after[rank]["step"] == 5
    streams = [it["random"]["torch"].tolist() for it in after]
    assert streams[0] != streams[1] != streams[2]


def test_between_syncs_ranks_were_not_alike(ranks2: RankPool, ranks3: RankPool, tmp_path: Path) -> None:
    local = ("sync=local_sgd", "sync.period=4")
    ranks2.run(run, *parts(*local, "max_steps=6"), str(tmp_path / "two"))
    found = ranks3.run(run, *parts(*local, ALLOWED, source=tmp_path / "two"), str(tmp_path / "three"))
    assert len(set(found)) == 1
    assert found[0].startswith("CheckpointError: resume_other_ranks: after step 6 the 2 ranks of the checkpoint had")
    assert not (tmp_path / "three" / "checkpoints").exists()


def test_the_same_number_of_ranks_loses_nothing(ranks2: RankPool, tmp_path: Path) -> None:
    local = ("sync=local_sgd", "sync.period=4", *MOMENTUM)
    ranks2.run(run, *parts(*local), str(tmp_path / "whole"))
    ranks2.run(run, *parts(*local, "max_steps=6"), str(tmp_path / "six"))
    ranks2.run(run, *parts(*local, ALLOWED, source=tmp_path / "six"), str(tmp_path / "resumed"))
    assert torch.equal(weights(tmp_path / "resumed", 8), weights(tmp_path / "whole", 8))
