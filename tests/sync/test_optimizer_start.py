"""An optimizer's state begins right: after fp16 gradients that overflow, and for gradients that come late."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from loops import alone
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from ddp_agent.reducers import Dense
from ddp_agent.sync import LocalSGD
from ddp_agent.training import optimizers

Make = Callable[[Iterable[nn.Parameter]], Optimizer]
SCALE = 2.0**10
INF = float("inf")

OWN: dict[str, Make] = {
    "sgd": optimizers.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1).create,
    "sgd without nesterov": optimizers.SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0).create,
    "sgd without momentum": optimizers.SGD(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.1).create,
    "adamw": optimizers.AdamW(lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1).create,
}
OF_TORCH: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": partial(Adam, lr=0.1, amsgrad=True),
    "AdamW": partial(AdamW, lr=0.1, weight_decay=0.1),
    "Adagrad": partial(Adagrad, lr=0.1),
}
WAYS: dict[str, dict[str, bool]] = {"fused": {"fused": True}, "foreach": {"foreach": True}, "plain": {"foreach": False}}
MAKES = OWN | {f"{name} {way}": partial(make, **WAYS[way]) for name, make in OF_TORCH.items() for way in WAYS}

# A gradient per step and parameter; None: this parameter has none in that step.
STEPS: dict[str, list[tuple[float | None, ...]]] = {
    "the first step overflows": [(INF, 1.0), (1.0, 2.0), (-1.0, 1.0)],
    "so do the first two": [(INF, 1.0), (INF, INF), (1.0, 2.0), (-1.0, 1.0)],
    "a later step overflows": [(1.0, 2.0), (1.0, INF), (-1.0, 1.0)],
    "a gradient comes late": [(1.0, None), (1.0, 1.0), (2.0, -1.0)],
    "it comes late and overflows": [(1.0, None), (1.0, INF), (2.0, -1.0), (1.0, 1.0)],
    "it comes now and then": [(1.0, 1.0), (1.0, None), (None, 2.0), (1.0, 1.0)],
}


def trained(make: Make, steps: list[tuple[float | None, ...]], *, scaled: bool, reset: int | None = None) -> Tensor:
    """Return the parameters after these steps, under a sync mode and a GradScaler if `scaled`."""
    model = nn.ParameterList([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))])
    optimizer = make(model.parameters())
    sync = LocalSGD(period=reset or 100, optimizer_state="reset" if reset else "local")
    sync.setup(model, optimizer, alone(), Dense())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=scaled)
    for step, gradients in enumerate(steps, start=1):
        scale = scaler.scale(torch.ones(()))
        for parameter, value in zip(model, gradients, strict=True):
            parameter.grad = None if value is None else torch.full_like(parameter, value) * scale
        scaler.step(optimizer)
        scaler.update()
        sync.after_step(step)
    return torch.cat([parameter.detach() for parameter in model])


@pytest.fixture
def unwritten_memory_is_nan() -> Iterable[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("reset", [None, 1], ids=["", "reset"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", MAKES)
def test_a_skipped_step_is_as_if_it_had_not_been(
    name: str, steps: str, reset: int | None, unwritten_memory_is_nan: None
) -> None:
    """Against the same optimizer without the skipped steps and without a scaler; fused against plain below."""
    applied = [step for step in STEPS[steps] if INF not in step]
    found = trained(MAKES[name], STEPS[steps], scaled=True, reset=reset)
    torch.testing.assert_close(found, trained(MAKES[name], applied, scaled=False, reset=reset), rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", OF_TORCH)
def test_fused_is_what_plain_is(name: str, steps: str) -> None:
    applied = [step for step in STEPS[steps] if INF not in step]
    fused, plain = (trained(MAKES[f"{name} {way}"], applied, scaled=False) for way in ("fused", "plain"))
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=0)


def test_state_that_was_loaded_is_kept() -> None:
    """A resume brings momentum for some parameters; the others begin from zeros."""
    first, second = ([nn.Parameter(torch.ones(2)) for _ in range(2)] for _ in range(2))
    makes: list[Any] = []
    for parameters in (first, second):
        optimizer = MAKES["SGD fused"](parameters)
        LocalSGD(period=2).setup(nn.ParameterList(parameters), optimizer, alone(), Dense())
        makes.append(optimizer)
    first[0].grad = torch.ones(2)
    makes[0].step()
    makes[1].load_state_dict(makes[0].state_dict())
    second[0].grad, second[1].grad = torch.zeros(2), torch.ones(2)
    makes[1].step()
    assert makes[1].state[second[0]]["momentum_buffer"].tolist() == pytest.approx([0.9, 0.9])
    assert makes[1].state[second[1]]["momentum_buffer"].tolist() == [1.0, 1.0]
