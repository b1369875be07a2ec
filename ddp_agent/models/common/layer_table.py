"""A model's structure as a table: what each layer holds, gives and costs."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """What one forward pass showed, by names of modules: the shape of what they gave, and FLOPs, those inside included.

    For one sample.
    """

    shapes: Mapping[str, str]
    flops: Mapping[str, int]

    def own_flops(self, name: str, module: nn.Module) -> int:
        """Without those of the modules inside it."""
        return max(0, self.flops.get(name, 0) - self._inside(name, module))

    def _inside(self, name: str, module: nn.Module) -> int:
        """A list of modules is never called itself: what is in it stands for it."""
        paths = ((f"{name}.{child}".lstrip("."), inner) for child, inner in module.named_children())
        return sum(self.flops[path] if path in self.flops else self._inside(path, inner) for path, inner in paths)


def layer_table(model: nn.Module, inputs: Tensor | None = None) -> str:
    """Markdown. A layer is a module that has parameters or FLOPs of its own, or no modules inside.

    With `inputs` [samples, ...], as the model gets them, also the shape of what each layer gives and its FLOPs.
    """
    seen = None if inputs is None else _try_forward(model, inputs)
    return _without_pass(model) if seen is None else _with_pass(model, seen)


def _without_pass(model: nn.Module) -> str:
    rows = ["| layer | type | parameters | count |", "|---|---|---|---:|"]
    rows += [_described(name, module) for name, module in model.named_modules() if _holds(module)]
    return "\n".join([*rows, _total(model)])


def _with_pass(model: nn.Module, seen: Pass) -> str:
    rows = ["| layer | type | parameters | count | output | FLOPs |", "|---|---|---|---:|---|---:|"]
    for name, module in model.named_modules():
        flops = seen.own_flops(name, module)
        if _holds(module) or flops:
            rows.append(f"{_described(name, module)} {seen.shapes.get(name, '')} | {flops:,} |")
    total = f"{_total(model)} | **{seen.flops.get('', 0):,}** |"
    about = "FLOPs: of matrix products, convolutions and attention, in the forward pass of one sample."
    return "\n".join([*rows, total, "", about])


def _holds(module: nn.Module) -> bool:
    return bool(dict(module.named_parameters(recurse=False))) or not any(module.children())


def _described(name: str, module: nn.Module) -> str:
    own = dict(module.named_parameters(recurse=False))
    shapes = ", ".join(f"{key} {_by(value.shape)}" for key, value in own.items())
    count = sum(value.numel() for value in own.values())
    return f"| {name or '(model)'} | {type(module).__name__} | {shapes} | {count:,} |"


def _total(model: nn.Module) -> str:
    total = sum(parameter.numel() for parameter in model.parameters())
    return f"| **total** | {type(model).__name__} | | **{total:,}** |"


def _by(shape: torch.Size) -> str:
    return "×".join(map(str, shape))


def _try_forward(model: nn.Module, inputs: Tensor) -> Pass | None:
    """None for a model that torch cannot count: no table is worth a training."""
    try:
        return _forward(model, inputs)
    except Exception as error:
        _log.warning("no shapes and FLOPs of the model's layers: %s: %s", type(error).__name__, error)
        return None


def _forward(model: nn.Module, inputs: Tensor) -> Pass:
    """In evaluation mode, and not compiled: what is counted are torch's own operations. 10 to 20 ms on a CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    shapes: dict[str, str] = {}
    hooks = [module.register_forward_hook(partial(_note, shapes, name)) for name, module in model.named_modules()]
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
            model.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    root = type(model).__name__  # what the counter calls the model
    counted = {
        name: sum(by_operation.values()) // len(inputs) for name, by_operation in counter.get_flop_counts().items()
    }
    inside = {name.removeprefix(f"{root}."): flops for name, flops in counted.items() if name.startswith(f"{root}.")}
    return Pass(shapes, inside | {"": counted.get("Global", 0)})


def _note(shapes: dict[str, str], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        shapes[name] = _by(output.shape[1:])
