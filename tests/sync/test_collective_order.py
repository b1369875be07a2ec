"""Collectives of a rank that dies, and the order of collectives, which must be the same on all ranks."""

import ast
from pathlib import Path
from typing import Any

import pytest
from loops import Loop
from rank_pool import RankPool
from runs import mode, run
from test_streaming import Watched
from torch import Tensor

from ddp_agent.config.registry import build
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.error_propagation import first_problem
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.reducers import Dense
from ddp_agent.reducers.base import Finish
from ddp_agent.sync import StreamingDiLoCo
from ddp_agent.sync.engine import ddp_hook as overlap


class Dying(Dense):
    """The second averaging stops after the sum: what is in the tensor then is the sum, of whoever took part."""

    def __post_init__(self) -> None:
        self.calls = 0

    def start(self, tensor: Tensor, comm: Comm) -> Finish:
        pending = comm.start_all_reduce_(tensor)
        self.calls += 1
        calls = self.calls

        def finish() -> None:
            pending.wait()
            if calls == 2:
                raise RuntimeError("a rank died")
            tensor.mul_(1 / comm.size)

        return finish


def run_and_die(cfg: dict[str, Any], choices: dict[str, str], path: str) -> str:
    from unittest import mock

    def build_dying(group: str, *node: Any, **given: Any) -> Any:
        return Dying() if group == "reducer" else build(group, *node, **given)

    with mock.patch("ddp_agent.training.settings.build", build_dying):
        try:
            return str(run(cfg, choices, path))
        except RuntimeError as error:
            return f"died: {error}"


def test_sums_of_a_collective_that_died_are_not_saved(ranks2: RankPool, tmp_path: Path) -> None:
    """An in-place all-reduce that dies midway leaves sums of different ranks with the survivors."""
    answers = ranks2.run(run_and_die, *mode("local_sgd", "checkpoint_every=1"), str(tmp_path / "run"))
    assert answers == ["died: a rank died"] * 2
    kept = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000007"]  # the second averaging is after step 8
    assert not (tmp_path / "run" / "model.safetensors").exists()


def agreed(bad_rank: int) -> str | None:
    world = world_comm()
    error = ValueError("loss is nan") if world.rank == bad_rank else None
    return first_problem(world, error)


def test_ranks_agree_on_a_problem_by_a_number(ranks2: RankPool) -> None:
    """MAX of a NaN over gloo is not NaN: ranks that agreed on the loss itself would go different ways."""
    for answers in (ranks2.run(agreed, 0), ranks2.run(agreed, 1)):
        assert answers[0] is not None
        assert str(answers[0]) == str(answers[1])
    assert ranks2.run(agreed, 2) == [None, None]


def test_ddps_hook_has_the_annotation_that_ddp_wants() -> None:
    """DDP compares it with exactly this type: as a string (`from __future__ import annotations`) it is refused."""
    tree = ast.parse(Path(overlap.__file__).read_text())
    (hook,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "start"]
    assert hook.returns is not None
    assert ast.unparse(hook.returns) == "torch.futures.Future[torch.Tensor]"
    assert not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in ast.walk(tree))


def order_of_collectives(delay: int) -> list[str]:
    reducer = Watched()
    Loop(StreamingDiLoCo(period=9, fragments=3, delay=delay), reducer=reducer).run(20).flush()
    return reducer.events


@pytest.mark.parametrize("delay", [0, 2])
def test_fragments_go_in_one_order_on_all_ranks(ranks3: RankPool, delay: int) -> None:
    """Two collectives in different orders would wait for each other for ever."""
    orders = ranks3.run(order_of_collectives, delay)
    assert orders[0] == orders[1] == orders[2]
    started = [event for event in orders[0] if event.startswith("start")]
    assert len(started) == 2 * 3 + 3  # two whole periods; at step 20 of 27 the flush takes what is left
