"""Ranks that should be alike: what differs is named with its rank, on all of them, before anything is made of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pieces
import pytest
import torch
import torch.distributed as dist
from mode_cases import has_replicas
from rank_pool import RankPool
from runs import mode, run
from torch import Tensor

from ddp_agent.data.task import Task
from ddp_agent.distributed.consistency import (
    ReplicatedTensor,
    config_sha256,
    require_identical,
    require_replicated,
    sha256_of,
)
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.errors import RefusedError
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.session import Session

COMMON = [name for name, make in pieces.MODES.items() if has_replicas(make().traits)]


def said(work: Callable[..., None], *args: Any) -> str:
    try:
        work(*args)
    except RefusedError as error:
        return f"{type(error).__name__}: {error}"
    return "alike"


def compare(values: list[dict[str, str]]) -> str:
    mine = {what: sha256_of(value) for what, value in values[dist.get_rank()].items()}
    return said(require_identical, mine, world_comm())


def test_whatever_differs_is_named_with_its_ranks(ranks3: RankPool) -> None:
    same = {"code": "a", "data": "b", "configuration": "c"}
    assert ranks3.run(compare, [same] * 3) == ["alike"] * 3
    found = ranks3.run(compare, [same, same | {"data": "x"}, same | {"data": "y", "configuration": "z"}])
    assert set(found) == {
        "ConfigError: ranks differ: data of ranks 1, 2 is not that of rank 0\n"
        "ranks differ: configuration of rank 2 is not that of rank 0"
    }


def test_paths_may_differ_between_nodes_and_nothing_else() -> None:
    cfg = {"seed": 1, "data_root": "/a", "resume": None, "model": {"hidden": [8]}}
    assert config_sha256(cfg) == config_sha256(cfg | {"data_root": "/b", "resume": "/c"})
    assert len({config_sha256(it) for it in (cfg, cfg | {"seed": 2}, cfg | {"model": {"hidden": [9]}})}) == 3


def compare_bits(flipped: list[int], dtype: torch.dtype, bit: int) -> str:
    """Bit number `bit` of one number in the middle is another on the ranks that are `flipped`."""
    tensor = torch.arange(-500, 501).to(dtype)
    if dist.get_rank() in flipped:
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        tensor.view(integers[dtype.itemsize])[123] ^= 1 << bit
    return said(require_replicated, [ReplicatedTensor(tensor, range(3))], world_comm(), 7)


@pytest.mark.parametrize(("dtype", "bit"), [(torch.float32, 0), (torch.float32, 30), (torch.bfloat16, 3)])
def test_one_flipped_bit_is_seen_on_every_rank(ranks3: RankPool, dtype: torch.dtype, bit: int) -> None:
    assert ranks3.run(compare_bits, [], dtype, bit) == ["alike"] * 3
    (found,) = set(ranks3.run(compare_bits, [2], dtype, bit))
    assert found.startswith(
        "DivergedError: after step 7 the parameters that all ranks share are not the same on rank 2"
    )


def compare_owners(flipped: list[int]) -> str:
    """A head of ranks 1 and 2, which rank 0 has nothing of, behind what nobody is sure to have alike."""
    rank = dist.get_rank()
    tensor = torch.ones(5)
    tensor.view(torch.int32)[3] ^= rank in flipped
    parts = [
        ReplicatedTensor(None, range(3)),
        ReplicatedTensor(tensor if rank else None, (1, 2), "the parameters of heads.b"),
    ]
    return said(require_replicated, parts, world_comm(), 7)


def test_what_only_some_ranks_share_is_compared_among_them_and_told_on_all(ranks3: RankPool) -> None:
    assert ranks3.run(compare_owners, []) == ["alike"] * 3
    assert ranks3.run(compare_owners, [1, 2]) == ["alike"] * 3
    (found,) = set(ranks3.run(compare_owners, [2]))
    assert found.startswith(
        "DivergedError: after step 7 the parameters of heads.b are not the same on rank 2 as on rank 1"
    )


# Whole runs


def with_sha256(task: Task, sha256: str) -> Task:
    return replace(task, data=replace(task.data, sha256=sha256))


def unequal(what: str, cfg: dict[str, Any], choices: dict[str, str], path: str) -> Any:
    rank = dist.get_rank()
    if what == "configuration":
        cfg["seed"] = rank
        return run(cfg, choices, path)
    if what == "data":
        return run(cfg, choices, path, change=lambda task: task if rank < 2 else with_sha256(task, "0" * 64))
    with mock.patch("ddp_agent.run.code_sha256", return_value=sha256_of(max(rank, 1))):
        return run(cfg, choices, path)


@pytest.mark.parametrize(("what", "ranks"), [("configuration", "ranks 1, 2"), ("data", "rank 2"), ("code", "rank 2")])
def test_a_run_of_ranks_that_differ_does_not_begin(ranks3: RankPool, tmp_path: Path, what: str, ranks: str) -> None:
    found = ranks3.run(unequal, what, *mode("local_sgd"), str(tmp_path))
    assert set(found) == {f"ConfigError: ranks differ: {what} of {ranks} is not that of rank 0"}
    assert not (tmp_path / "metrics.jsonl").exists()


def with_a_flipped_weight(at: int, cfg: dict[str, Any], choices: dict[str, str], path: str) -> Any:
    """Run with one bit of a replicated tensor flipped on rank 1 after step `at`, as broken memory would do."""
    before = Session.compare_ranks

    def flip(session: Session) -> None:
        common: Tensor | None = internals(session.setup.sync).replicated(session.step)[0].tensor
        if dist.get_rank() == 1 and session.step == at:
            assert common is not None
            common.view(torch.int32)[3] ^= 1
        before(session)

    with mock.patch.object(Session, "compare_ranks", flip):
        return run(cfg, choices, path)


@pytest.mark.parametrize("name", COMMON)
def test_a_flipped_weight_is_found_before_it_is_saved(ranks2: RankPool, tmp_path: Path, name: str) -> None:
    traits = pieces.MODES[name]().traits
    at = 6 if traits.has_period and traits.averages_in_backward else 4  # its first period begins with step 3
    found = ranks2.run(with_a_flipped_weight, at, *mode(name, "checkpoint_every=2"), str(tmp_path))
    assert len(set(found)) == 1
    assert found[0].startswith(f"DivergedError: after step {at} the parameters that all ranks share")
    assert "on rank 1 as" in found[0]
    assert [path.name for path in sorted(tmp_path.glob("checkpoints/*"))] == [
        f"step-{step:08d}" for step in range(2, at, 2)
    ]
