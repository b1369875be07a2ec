"""Ways in which code of a user gives a model that is set up other memory, and a loop in which each happens."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim import SGD, Optimizer

STEPS = 6
CHANGED_AFTER = 1  # a step, and a step before the first synchronisation


def layers(channels: int, side: int, outputs: int) -> list[nn.Module]:
    wide = 8 * (side - 2) ** 2
    head = nn.Sequential(nn.Flatten(), nn.Linear(wide, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, outputs))
    return [nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), head]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers(3, 4, 4))


class Restless(nn.Sequential):
    """A model of a user's own that changes itself in the forward pass of the third step."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, change: str) -> None:
        super().__init__(*layers(input_shape[0], input_shape[-1], outputs))
        self.change, self.calls = change, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls == 3 and self.training:
            EVERY[self.change](self, None)
        outputs = inputs
        for layer in self:
            outputs = layer(outputs)
        return outputs


class Negative(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return -weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return -weight


def _own_data(*tensors: Tensor) -> None:
    for tensor in tensors:
        tensor.data = tensor.data.clone()


def _in_forward(change: Callable[[Any], Any]) -> Callable[[Any, Optimizer], None]:
    def hook(module: Any, inputs: Any) -> None:
        change(module)

    return lambda model, optimizer: model.register_forward_pre_hook(hook)


def _swap(model: Any, optimizer: Optimizer) -> None:
    torch.utils.swap_tensors(model[1].running_var, model[1].running_var.clone())


def _replace(model: Any, optimizer: Optimizer) -> None:
    model[3][4] = nn.Linear(8, model[3][4].out_features)


def replace_and_train(model: Any, optimizer: Optimizer) -> None:
    old = {id(parameter) for parameter in model[3][4].parameters()}
    _replace(model, optimizer)
    for group in optimizer.param_groups:
        group["params"] = [each for each in group["params"] if id(each) not in old]
    optimizer.add_param_group({"params": list(model[3][4].parameters())})


def _assign(model: Any, optimizer: Optimizer) -> None:
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)


def _vector(model: Any, optimizer: Optimizer) -> None:
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()).detach(), model.parameters())


def _set(model: Any, optimizer: Optimizer) -> None:
    with torch.no_grad():
        model[0].weight.set_(model[0].weight / 2)


def _to_itself(model: Any) -> None:
    model[1].running_mean = model[1].running_mean.clone()


Change = Callable[[Any, Any], Any]

# These keep the model's values, so training must go on as if nothing had happened.
HARMLESS: dict[str, Change] = {
    "nothing": lambda m, o: None,
    "data": lambda m, o: _own_data(m[0].weight),
    "data of all": lambda m, o: _own_data(*m.parameters(), *m.buffers()),
    "data in forward": _in_forward(lambda m: _own_data(m[3][1].bias)),
    "vector_to_parameters": _vector,
    "channels_last": lambda m, o: m.to(memory_format=torch.channels_last),
    "channels_last in forward": _in_forward(lambda m: m.to(memory_format=torch.channels_last)),
    "swap_tensors": _swap,
    "a buffer assigned": lambda m, o: _to_itself(m),
    "a buffer assigned in forward": _in_forward(_to_itself),
    "a counter assigned": lambda m, o: setattr(m[1], "num_batches_tracked", m[1].num_batches_tracked + 0),
    "the data of buffers": lambda m, o: _own_data(*m.buffers()),
    "a local buffer": lambda m, o: m[3][4].register_buffer("seen", torch.ones(3), persistent=False),
    "a layer wrapped": lambda m, o: m.__setitem__(3, nn.Sequential(m[3])),
}

KEPT = ("nothing", "a local buffer", "a layer wrapped")  # nothing leaves the flat tensor

# These change values, alike on all ranks. They are copied back where no hook on the very parameter is lost by them.
CHANGING: dict[str, Change] = {
    "half and float": lambda m, o: m.half().float(),
    "set_": _set,
    "a parametrisation": lambda m, o: parametrize.register_parametrization(m[3][1], "weight", Negative()),
}

# These cannot be copied back: each with the name that the refusal must hold.
REFUSED: dict[str, tuple[Change, str]] = {
    "load_state_dict(assign=True)": (_assign, "0.weight is another Parameter object"),
    "a layer replaced": (_replace, "3.4.weight is another Parameter object"),
    "a parameter replaced": (lambda m, o: setattr(m[0], "bias", nn.Parameter(torch.ones(8))), "0.bias is another"),
    "a parameter added": (lambda m, o: m.register_parameter("scale", nn.Parameter(torch.ones(1))), "scale is a new"),
    "a layer added": (lambda m, o: m.append(nn.PReLU()), "4.weight is a new parameter"),
    "a buffer registered": (lambda m, o: m[2].register_buffer("seen", torch.ones(3)), "2.seen is a new buffer"),
    "a buffer registered in forward": (
        _in_forward(lambda m: m[2].register_buffer("seen", torch.ones(3))),
        "2.seen is a new buffer",
    ),
    "tied by data": (
        lambda m, o: setattr(m[3][3].bias, "data", m[3][1].bias.data),
        "3.3.bias shares memory with 3.1.bias",
    ),
    "tied": (lambda m, o: setattr(m[3][3], "bias", m[3][1].bias), "3.3.bias is now 3.1.bias itself"),
    "weight_norm": (lambda m, o: parametrizations.weight_norm(m[3][1]), "3.1.weight is gone"),
    "spectral_norm": (lambda m, o: parametrizations.spectral_norm(m[3][1]), "_u is a new buffer"),
    "a parameter deleted": (lambda m, o: setattr(m[0], "bias", None), "0.bias is gone"),
    "a buffer deleted": (lambda m, o: setattr(m[1], "running_mean", None), "1.running_mean is gone"),
    "another shape": (lambda m, o: setattr(m[3][4].bias, "data", torch.ones(1)), r"3.4.bias was \(4,\) float32 on"),
    "half": (lambda m, o: m[1].half(), r"1.weight was \(8,\) float32 on cpu and is \(8,\) float16 on cpu"),
    "a stranger in the optimizer": (
        lambda m, o: o.add_param_group({"params": [nn.Parameter(torch.ones(3))]}),
        "group 1 has a new parameter",
    ),
}
EVERY: dict[str, Change] = {**HARMLESS, **CHANGING, **{name: change for name, (change, _) in REFUSED.items()}}


@dataclass(frozen=True)
class End:
    """How a loop ended: the model's own tensors after the flush, the distance that the mode tells, or the refusal."""

    tensors: list[Tensor]
    distance: float
    refused: str
    said: list[str]


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def looped(sync: Any, topology: Any, reducer: Any, change: Change, *, rank: int, on: tuple[int, ...] = (0, 1)) -> End:
    """Return how an ordinary loop ends in which `change` happens between two steps, on the ranks `on`."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    handler = Records()
    logging.getLogger("ddp_agent").addHandler(handler)
    try:
        forward = sync.setup(model, optimizer, topology, reducer)
        generator = torch.Generator().manual_seed(rank)
        for step in range(1, STEPS + 1):
            inputs = torch.randn(4, 3, 4, 4, generator=generator)
            target = torch.randint(0, 4, (4,), generator=generator)
            with sync.backward_context(step, last_micro_batch=True):
                nn.functional.cross_entropy(forward(inputs), target).backward()
            sync.before_step(step)
            optimizer.step()
            sync.after_step(step)
            optimizer.zero_grad()
            if step == CHANGED_AFTER and rank in on:
                change(model, optimizer)
        sync.flush(STEPS)
        distance = sync.consensus_distance()
    except Exception as error:
        return End([], 0.0, f"{type(error).__name__}: {error}", [])
    finally:
        logging.getLogger("ddp_agent").removeHandler(handler)
    tensors = [each.detach().clone() for each in (*model.parameters(), *model.buffers())]
    return End(tensors, distance, "", handler.said)
