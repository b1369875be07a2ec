"""Error feedback under a GradScaler: nothing is lost when the scale changes, or when a step is skipped."""

from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from loops import DTYPE, InBuckets, Loop, apart
from rank_pool import RankPool
from reducer_cases import LOSSY, MAKE, SHAPES, SIZE, averaged, values
from runs import mode, run
from torch import Tensor

from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.reducers import PowerSGD, Reducer, TopK
from ddp_agent.sync import Compressed, SyncStrategy
from ddp_agent.sync.engine.uneven_inputs import Weighted
from ddp_agent.training.loss_scale import LossScale

SCALES = (1024.0, 2048.0, 2048.0, 1024.0, 512.0, 1024.0, 4096.0)  # lower: the step before was skipped


def history(name: str, follow: bool) -> list[dict[str, Any]]:
    """Return what goes in, what comes out and what is owed, in units of 1."""
    comm = world_comm()
    root: Any = MAKE[name]()
    part = root.for_tensor(SHAPES)
    root.follow_scale(torch.tensor(1.0))
    turns = []
    for turn, (scale, after) in enumerate(zip(SCALES, (*SCALES[1:], SCALES[-1]), strict=True)):
        own = values(turn, comm.rank, DTYPE)
        sent = own * scale
        skipped = after < scale
        if skipped and comm.rank == 1:
            sent[turn] = torch.inf
        result = averaged(part, sent, comm) / scale
        assert skipped != bool(result.isfinite().all())
        if follow:
            root.follow_scale(torch.tensor(after / scale))
        turns.append({"input": own, "result": result, "skipped": skipped, "owed": part.unsent(comm) / after})
    return turns


def largest_loss(histories: list[list[dict[str, Any]]]) -> float:
    """Return by how much given = got + owed is wrong, at most in any turn."""
    owed, worst = torch.zeros(SIZE, dtype=DTYPE), 0.0
    for turns in zip(*histories, strict=True):
        now = torch.stack([each["owed"] for each in turns]).mean(0)
        given = torch.stack([each["input"] for each in turns]).mean(0)
        expected = owed if turns[0]["skipped"] else given + owed - turns[0]["result"]
        worst, owed = max(worst, apart(now, expected)), now
    return worst


@LOSSY
def test_given_is_got_and_owed_while_the_scale_doubles_and_halves(ranks2: RankPool, name: str) -> None:
    assert largest_loss(ranks2.run(history, name, True)) < 1e-12
    assert largest_loss(ranks2.run(history, name, False)) > 1e-2  # control


MODES: dict[str, tuple[type[SyncStrategy], Reducer]] = {
    "compressed": (Compressed, TopK(ratio=0.3)),
    "compressed with weights": (Compressed, Weighted(PowerSGD(rank=1, min_compression=0.0))),
    "allreduce in buckets": (InBuckets, PowerSGD(rank=1, min_compression=0.0)),
}


def weights(name: str, changes: bool) -> Tensor:
    """Return the parameters after an own loop, whose scale doubles after every second step if it `changes`."""
    make, reducer = MODES[name]
    loop = Loop(make(), reducer=reducer)
    scaler = LossScale("cpu", reducer, init_scale=2.0**10, growth_interval=2 if changes else 1000)
    for step in range(1, 9):
        inputs, target = loop.batches(step, loop.topology.world.rank)
        with loop.sync.backward_context(step, last_micro_batch=True):
            scaler.scale(torch.nn.functional.mse_loss(loop.model(inputs), target)).backward()
        loop.sync.before_step(step)
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()
    assert scaler.get_scale() == 2.0 ** (14 if changes else 10)
    return loop.weights


@pytest.mark.parametrize("name", MODES)
def test_the_scale_does_not_show_in_the_weights(ranks2: RankPool, name: str) -> None:
    (changing, _), (constant, _) = ranks2.run(weights, name, True), ranks2.run(weights, name, False)
    assert torch.equal(changing, constant)  # powers of two are exact


def score(path: str, growth_interval: int) -> Any:
    scale = partial(LossScale, init_scale=2.0**8, growth_interval=growth_interval)
    cfg, choices = mode("compressed", "reducer=topk", "precision=fp16", "device=cpu", "max_steps=8")
    with mock.patch("ddp_agent.training.session.LossScale", scale):
        return run(cfg, choices, path)


def test_nor_in_a_run(ranks2: RankPool, tmp_path: Any) -> None:
    """fp16 rounds in units of the scale where gradients are subnormal, so this is no equality."""
    changing, constant = (
        ranks2.run(score, str(tmp_path / name), interval)[0] for name, interval in (("2", 2), ("1000", 1000))
    )
    assert changing["test_loss"] == pytest.approx(constant["test_loss"], rel=1e-4)
