"""The article's formulas and its listing, line by line in plain tensors, against what a run does (docs/article.md)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rank_pool import RankPool
from runs import config, run
from torch import Tensor

from ddp_agent.checkpoint import export
from ddp_agent.data.classification import half_squared_error
from ddp_agent.data.slicing.base import SampleAttributes
from ddp_agent.data.task import Task
from ddp_agent.models.linear import Linear
from ddp_agent.training.model import create_model
from ddp_agent.training.settings import parse

NODES, STEPS, BATCH, LR = 2, 8, 24, 0.003  # a node's batch


def test_gradients_are_those_of_section_4_2() -> None:
    """dL/dW = (y - y^) x and dL/db = y - y^, with y what the model gives and y^ what is right."""
    model = Linear(input_shape=(10,), outputs=2).double()
    x, label = torch.randn(1, 10, dtype=torch.float64), torch.tensor([1])
    y, y_hat = model(x), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    torch.autograd.backward(half_squared_error(y, label))
    torch.testing.assert_close(model.linear.weight.grad, (y - y_hat).T @ x)
    torch.testing.assert_close(model.linear.bias.grad, (y - y_hat)[0])


def trained(x: Tensor, y_hat: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One step of section 4.2, with the mean over the samples of a batch."""
    error = x @ weight.T + bias - y_hat
    return weight - LR * error.T @ x / len(x), bias - LR * error.mean(0)


def averaged(shared: Tensor, nodes: list[Tensor]) -> Tensor:
    """Section 5.2: average(weights)."""
    return torch.stack(nodes).mean(0)


def accumulated(shared: Tensor, nodes: list[Tensor]) -> Tensor:
    """Section 4.3: the nodes' updates are added up and applied to the original model."""
    return shared + torch.stack([node - shared for node in nodes]).sum(0)


def listing(together: Callable[[Tensor, list[Tensor]], Tensor], period: int) -> tuple[Tensor, Tensor]:
    """Section 5.2: slice the data, train every node by itself, put the nodes' models together."""
    settings, task = prepared()
    model = create_model(settings, task)
    x, labels = task.data.train[:]
    y_hat = torch.eye(2)[labels]
    weight, bias = (parameter.detach() for parameter in model.parameters())
    orders = [settings.slicing.order(SampleAttributes.of(task.data), 0, node, NODES) for node in range(NODES)]
    for first in range(0, STEPS, period):
        weights, biases = [], []
        for order in orders:  # for node in nodes: node.train()
            w, b = weight, bias
            for step in range(first, first + period):
                mine = order.take(step * BATCH, BATCH)
                w, b = trained(x[mine], y_hat[mine], w, b)
            weights.append(w)
            biases.append(b)
        weight, bias = together(weight, weights), together(bias, biases)
    return weight, bias


def prepared(*more: str) -> tuple:  # type: ignore[type-arg]
    cfg, choices = overrides(*more)
    settings = parse(cfg, choices=choices, world_size=NODES)
    task: Task = settings.dataset.load()
    return settings, task


def overrides(*more: str) -> tuple:  # type: ignore[type-arg]
    return config("+experiment=article", "slicing=contiguous", f"global_batch_size={NODES * BATCH}", *more)


@pytest.mark.parametrize("period", [4, STEPS])  # STEPS: the listing averages once, when all have trained
@pytest.mark.parametrize(("mode", "together"), [("local_sgd", averaged), ("parameter_update", accumulated)])
def test_a_run_does_what_the_listing_says(
    ranks2: RankPool, tmp_path: Path, mode: str, together: Callable[[Tensor, list[Tensor]], Tensor], period: int
) -> None:
    summary = ranks2.run(run, *overrides(f"sync={mode}", f"sync.period={period}"), str(tmp_path))[0]
    assert isinstance(summary, dict), summary
    assert summary["shard_sizes"] == [500, 500]
    model = export.load(tmp_path)
    weight, bias = listing(together, period)
    torch.testing.assert_close(dict(model.named_parameters())["linear.weight"].detach(), weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(dict(model.named_parameters())["linear.bias"].detach(), bias, atol=1e-6, rtol=1e-5)
    other = averaged if together is accumulated else accumulated
    assert (listing(other, period)[0] - weight).abs().max() > 1e-3  # the control
