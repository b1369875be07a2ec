"""A model's layers as a table: parameters, output shapes and FLOPs."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forward:
    """The forward pass of one sample, by names of modules. The name of the model itself is empty."""

    shapes: Mapping[str, str]
    flops: Mapping[str, int]
    """FLOPs of a module, including those of modules inside it."""

    def own_flops(self) -> dict[str, int]:
        """Return the FLOPs per module without those of modules inside it."""
        own = dict(self.flops)
        for name, flops in self.flops.items():
            if name:
                parent = name.rpartition(".")[0]
                while parent not in own:  # a list of modules, which is never called itself
                    parent = parent.rpartition(".")[0]
                own[parent] -= flops
        return own


def layer_table(model: nn.Module, inputs: Tensor | None = None) -> str:
    """Return a table in Markdown of the modules that have parameters or FLOPs of their own, or no modules inside.

    With `inputs` [samples, ...], as the model gets them, the table also has output shapes and FLOPs.
    """
    forward = None if inputs is None else _try_forward(model, inputs)
    own_flops = forward.own_flops() if forward else {}
    rows = ["| layer | type | parameters | count |", "|---|---|---|---:|"]
    if forward:
        rows = [rows[0] + " output | FLOPs |", rows[1] + "---|---:|"]
    for name, module in model.named_modules():
        own, flops = dict(module.named_parameters(recurse=False)), max(0, own_flops.get(name, 0))
        if own or flops or not any(module.children()):
            shapes = ", ".join(f"{key} {_by(value.shape)}" for key, value in own.items())
            count = sum(value.numel() for value in own.values())
            rows.append(f"| {name or '(model)'} | {type(module).__name__} | {shapes} | {count:,} |")
            rows[-1] += f" {forward.shapes.get(name, '')} | {flops:,} |" if forward else ""
    total = sum(parameter.numel() for parameter in model.parameters())
    rows.append(f"| **total** | {type(model).__name__} | | **{total:,}** |")
    if forward:
        rows[-1] += f" | **{forward.flops['']:,}** |"
        rows += ["", "FLOPs: of matrix products, convolutions and attention, in the forward pass of one sample."]
    return "\n".join(rows)


def _by(shape: torch.Size) -> str:
    return "×".join(map(str, shape))


def _try_forward(model: nn.Module, inputs: Tensor) -> Forward | None:
    """Return None for a model whose FLOPs torch cannot count: a missing table must not end a training."""
    try:
        return _forward(model, inputs)
    except Exception as error:
        _log.warning("no shapes and FLOPs of the model's layers: %s: %s", type(error).__name__, error)
        return None


def _forward(model: nn.Module, inputs: Tensor) -> Forward:
    """Run one pass in evaluation mode, not compiled: only torch's own operations are counted. 10 to 20 ms on a CPU."""
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
    counts = {name: sum(kinds.values()) // len(inputs) for name, kinds in counter.get_flop_counts().items()}
    flops = {"": counts.pop("Global", 0)}
    prefix = f"{type(model).__name__}."  # of all other names
    flops |= {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}
    return Forward(shapes, flops)


def _note(shapes: dict[str, str], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        shapes[name] = _by(output.shape[1:])
