"""The inner optimizers are torch's: the same steps and state as its plain, unfused ones."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_agent.sync.engine.flat import Flat
from ddp_agent.training.optimizers import SGD, AdamW

STEPS = 4
SGDS = [
    SGD(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    for lr, momentum, nesterov, weight_decay in [(0.1, 0.0, False, 0.0), (0.1, 0.9, False, 0.01), (0.2, 0.5, True, 0.3)]
]
ADAMS = [
    AdamW(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01),
    AdamW(lr=0.3, beta1=0.0, beta2=0.5, eps=1e-2, weight_decay=0.0),
]


def plain(options: SGD | AdamW, parameters: Iterator[nn.Parameter]) -> Optimizer:
    values: dict[str, Any] = dict(vars(options)) | {"fused": False, "foreach": False}
    if isinstance(options, SGD):
        return torch.optim.SGD(parameters, **values)
    return torch.optim.AdamW(parameters, betas=(values.pop("beta1"), values.pop("beta2")), **values)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 2)).double()


def train(module: nn.Module, optimizer: Optimizer, steps: int = STEPS) -> None:
    inputs = torch.randn(5, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(module(inputs).square().sum())
        optimizer.step()


def state(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the state of each parameter, with step counts as numbers: torch keeps them in several types."""
    return [
        {key: value.item() if isinstance(value, Tensor) and value.dim() == 0 else value for key, value in kept.items()}
        for kept in optimizer.state_dict()["state"].values()
    ]


@pytest.mark.parametrize("options", [*SGDS, *ADAMS], ids=repr)
def test_steps_and_state_are_those_of_the_unfused_one(options: SGD | AdamW) -> None:
    ours, theirs = model(), model()
    optimizer, reference = options.create(ours.parameters()), plain(options, theirs.parameters())
    train(ours, optimizer)
    train(theirs, reference)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state(optimizer), state(reference), rtol=1e-12, atol=1e-12)
    assert optimizer.defaults["fused"] is True


@pytest.mark.parametrize("options", [SGDS[1], ADAMS[0]], ids=repr)
def test_weights_that_are_views_of_one_tensor_are_stepped_in_place(options: SGD | AdamW) -> None:
    ours, theirs = model().to(memory_format=torch.channels_last), model()
    optimizer = options.create(ours.parameters())
    flat = Flat(ours)  # after the optimizer was made, as sync modes do it
    storage = flat.everything.data_ptr()
    train(ours, optimizer)
    train(theirs, plain(options, theirs.parameters()))
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-12, atol=1e-12)
    assert next(ours.parameters()).data_ptr() == storage


@pytest.mark.parametrize("options", [*SGDS, *ADAMS], ids=repr)
def test_a_learning_rate_of_nothing_leaves_the_weights_alone(options: SGD | AdamW) -> None:
    module, before = model(), list(model().parameters())
    optimizer = options.create(module.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # as a schedule sets it, for a fused kernel as for any other
    train(module, optimizer)
    assert all(map(torch.equal, module.parameters(), before))


@pytest.mark.parametrize(
    ("kind", "values", "problem"),
    [
        (SGD, {"lr": -1}, "lr: found -1, expected a finite number >= 0"),
        (SGD, {"momentum": 2}, "momentum: found 2, expected a finite number >= 0 and <= 1"),
        (SGD, {"weight_decay": float("nan")}, "weight_decay: found nan, expected a finite number >= 0"),
        (SGD, {"momentum": 0, "nesterov": True}, "nesterov: found true with momentum 0, expected a momentum above 0"),
        (AdamW, {"beta1": 1}, "beta1: found 1, expected a finite number >= 0 and < 1"),
        (AdamW, {"beta2": 1.0}, "beta2: found 1.0, expected a finite number >= 0 and < 1"),
        (AdamW, {"eps": -1e-8}, "eps: found -1e-08, expected a finite number >= 0"),
        (AdamW, {"lr": float("inf")}, "lr: found inf, expected a finite number >= 0"),
    ],
)
def test_what_torch_would_refuse_late_or_not_at_all(kind: type, values: dict[str, Any], problem: str) -> None:
    right = vars(SGDS[1] if kind is SGD else ADAMS[0])
    kind(**right)
    with pytest.raises(ValueError, match=problem):
        kind(**(right | values))
