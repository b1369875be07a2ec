"""Every file below conf/ builds something that takes a training step: a new file is tested by being there."""

import itertools
from typing import Any

import model_inputs
import pytest
import torch
from configs import CONF, files, node
from loops import Loop, mlp, random_batch, refusal
from torch import Tensor, nn

from ddp_agent.config.registry import build

SMALL = {
    "period": 2,
    "global_period": 2,
    "switch_step": 1,
    "delay": 0,
}  # so that three steps and a flush meet all that a mode does


def built(group: str, name: str) -> Any:
    values = node(group, name)
    return build(group, values | {key: value for key, value in SMALL.items() if key in values})


ALLOWED = [
    (sync, reducer)
    for sync, reducer in itertools.product(files("sync"), files("reducer"))
    if refusal(built("sync", sync), built("reducer", reducer)) is None
]


def documented() -> tuple[set[tuple[str, str]], set[str], set[str]]:
    """The pairs that docs/modes.md ticks, its modes and its reducers."""
    text = (CONF.parent / "docs" / "modes.md").read_text(encoding="utf-8").partition("## What fits what\n\n")[2]
    head, _, *rows = (
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.partition("\n\n")[0].splitlines()
    )
    ticked = {(row[0], head[place]) for row in rows for place in range(2, len(head)) if row[place] == "✓"}
    return ticked, {row[0] for row in rows}, set(head[2:])


def test_the_documented_pairs_are_those_that_are_allowed() -> None:
    """A mode or reducer may be missing there, but all that it names is right."""
    ticked, modes, reducers = documented()
    assert modes <= set(files("sync")) and reducers <= set(files("reducer"))
    assert ticked == {(sync, reducer) for sync, reducer in ALLOWED if sync in modes and reducer in reducers}
    assert {"allreduce", "local_sgd", "diloco"} <= modes and {"dense", "int8", "topk"} <= reducers


def loss_of(module: nn.Module, inputs: Tensor, target: Tensor) -> float:
    with torch.no_grad():
        return nn.functional.mse_loss(module(inputs), target).item()


@pytest.mark.parametrize(("sync", "reducer"), ALLOWED)
def test_every_mode_learns_with_every_reducer_it_allows(sync: str, reducer: str) -> None:
    """One rank, without torch.distributed."""
    mode, (inputs, target) = built("sync", sync), random_batch(1, 0)
    loop = Loop(mode, reducer=built("reducer", reducer), batches=lambda step, rank: (inputs, target))
    before = loss_of(loop.module, inputs, target)
    loop.run(3).flush()
    assert loss_of(loop.module, inputs, target) < before  # by however little: some send few numbers in three steps
    assert mode.consensus_distance() == 0
    own = loop.weights
    with mode.eval_weights():
        if mode.traits.consensus == "anchor":
            own = mode.anchor
        torch.testing.assert_close(loop.weights, own)


@pytest.mark.parametrize("name", files("optimizer"))
def test_every_optimizer_learns(name: str) -> None:
    module, (inputs, target) = mlp(), random_batch(1, 0)
    optimizer = build("optimizer", node("optimizer", name)).create(module.parameters())
    before = loss_of(module, inputs, target)
    torch.autograd.backward(nn.functional.mse_loss(module(inputs), target))
    optimizer.step()
    assert loss_of(module, inputs, target) < before


@pytest.mark.parametrize("name", files("schedule"))
def test_every_schedule_lets_the_first_steps_learn(name: str) -> None:
    schedule = build("schedule", node("schedule", name))
    found = [schedule.factor(step, 100) for step in range(1, 101)]
    assert all(0 <= factor <= 1 for factor in found)
    assert min(found[:50]) > 0.1


@pytest.mark.parametrize("name", files("model"))
def test_every_model_learns(name: str) -> None:
    torch.manual_seed(0)
    module = build("model", node("model", name), **model_inputs.arguments(name, outputs=4))
    inputs = model_inputs.inputs(name, samples=8)
    target = torch.randn(module.eval()(inputs).shape)
    optimizer = torch.optim.SGD(module.train().parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        torch.manual_seed(1)  # the same dropout
        loss = nn.functional.mse_loss(module(inputs), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("dataset", ["digits", "article"])  # the others need files, and have tests of their own
def test_embedded_data_is_learnt_with_every_loss(dataset: str) -> None:
    for loss in ("cross_entropy", "half_squared_error"):
        task = build("dataset", node("dataset", dataset, loss=loss), data_root=None).load()
        torch.manual_seed(0)
        module = build(
            "model", node("model", "linear"), input_shape=task.data.input_shape, outputs=task.objective.outputs
        )
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        inputs, target = task.data.train[:]
        before = task.objective.loss(module(inputs), target)
        torch.autograd.backward(before)
        optimizer.step()
        assert task.objective.loss(module(inputs), target) < before
