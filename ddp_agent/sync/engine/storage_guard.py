"""The guard on a model's storage: tensors that left the flat tensor are copied back, or refused by name."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.optim import Optimizer

from ddp_agent.errors import ModelChangedError
from ddp_agent.sync.engine.flat import TIE, Flat, in_same_memory, persistent_buffers

SHOWN = 8  # names per message

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Slot:
    """A parameter or buffer as it was at setup. `home`: its place in the flat tensor."""

    name: str
    tensor: Tensor
    home: Tensor  # shares its storage with the tensor, and keeps it when the tensor is given another
    trained_by: Node | None  # where backward leaves the gradient, and DistributedDataParallel has its hook


class StorageGuard:
    """Notices when a model no longer views its flat tensor, which is what a sync mode reads and writes.

    `p.data = …`, `Module.to` and back, `load_state_dict(assign=True)`, a buffer assigned in forward or a replaced layer
    leave the model with other memory. Ranks would then drift apart, and every measurement would look at the memory that
    nobody uses. `check` copies such values back and says so once per tensor. It raises ModelChangedError where a tensor
    cannot go back: its shape, dtype or device is another, it is gone, it is new, it is tied to another one, or it is a
    parameter object that the optimizer or DistributedDataParallel does not know.

    A check where nothing has changed costs about 0.2 us per tensor and 0.1 us per module, or 0.1 % of an average of
    ResNet-50's parameters over two ranks (`python -m benchmarks sync`). A repair walks the model: 2 ms for ResNet-50.
    """

    def __init__(
        self, model: nn.Module, flat: Flat, optimizer: Optimizer, *, averages_gradients: bool, hooked: bool
    ) -> None:
        """Remember the model as it is. `hooked`: gradients are averaged by hooks on its parameters."""
        self._model, self._flat, self._optimizer = model, flat, optimizer
        self._averages_gradients, self.hooked = averages_gradients, hooked
        named = {**flat.named, **dict(persistent_buffers(model))}
        self._slots = [_Slot(name, each, each.detach(), self._trained_by(each)) for name, each in named.items()]
        self._strangers = self._held() - {id(each) for each in flat.named.values()}  # of another model, for example
        self._known = [each for group in optimizer.param_groups for each in group["params"]]  # their ids stay taken
        self._said: set[str] = set()
        self._remember()

    def _trained_by(self, tensor: Tensor) -> Node | None:
        return get_gradient_edge(tensor).node if self.hooked and tensor.requires_grad else None

    def _held(self) -> set[int]:
        return {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}

    def _remember(self) -> None:
        """Take the model as it is for the right one."""
        self._modules = list(self._model.modules())  # kept alive, so that no other object gets the id of one
        dicts = [each for one in self._modules for each in (one._parameters, one._buffers, one._modules)]
        self._tensors = [slot.tensor for slot in self._slots]
        self._pointers = [tensor.data_ptr() for tensor in self._tensors]
        self._empty = [each for each in dicts if not each]
        self._entries = [each.values() for each in dicts if each]
        self._entry_objects = [*chain.from_iterable(self._entries)]
        self._ids = [*map(id, self._entry_objects)]
        self._group_sizes = [len(group["params"]) for group in self._optimizer.param_groups]

    def check(self) -> None:
        """Copy back the tensors that have left the flat tensor. Raise ModelChangedError for one that cannot go back."""
        if (
            [*map(_POINTER, self._tensors)] != self._pointers
            or [*map(id, chain.from_iterable(self._entries))] != self._ids
            or any(self._empty)
            or [len(group["params"]) for group in self._optimizer.param_groups] != self._group_sizes
        ):
            self._repair()

    @torch.no_grad()
    def _repair(self) -> None:
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        buffers = dict(persistent_buffers(self._model))
        present = {id(tensor) for tensor in (*parameters.values(), *buffers.values())}
        now = {}
        for slot in self._slots:  # the same object counts, under whatever name; else what has its name
            candidates = parameters if isinstance(slot.tensor, nn.Parameter) else buffers
            now[slot.name] = slot.tensor if id(slot.tensor) in present else candidates.get(slot.name)
        if problems := [*self._problems(now), *self._additions({**parameters, **buffers}, now)]:
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise ModelChangedError(
                f"the model has changed since setup: {'; '.join(problems[:SHOWN])}{more}. Change it before setup, or "
                "write into the tensors that are there (copy_, load_state_dict without assign)"
            )
        moved = [(slot, found) for slot in self._slots if (found := now[slot.name]) is not None and _left(slot, found)]
        home = self._flat.parameters.untyped_storage().data_ptr()
        inside = [found.untyped_storage().data_ptr() == home for _, found in moved]
        values = [found.clone() if own else found for (_, found), own in zip(moved, inside, strict=True)]
        for (slot, found), value in zip(moved, values, strict=True):
            slot.home.copy_(value)
            self._put_back(slot, found)
        self._report([slot.name for slot, _ in moved])
        self._remember()

    def _put_back(self, slot: _Slot, found: Tensor) -> None:
        """Make the model view the tensor's home again. A new buffer object leaves the model, a new parameter stays."""
        tensor = slot.tensor
        if found is not tensor and isinstance(found, nn.Parameter):
            self._slots[self._slots.index(slot)] = _Slot(slot.name, found, slot.home, self._trained_by(found))
            self._flat.named[slot.name] = tensor = found
        elif found is not tensor:
            for module in self._model.modules():
                module._buffers.update({key: tensor for key, each in module._buffers.items() if each is found})
        # Not set_, which takes a parameter's node out of the graph, and with it the hook of DistributedDataParallel.
        tensor.data = slot.home.detach()

    def _problems(self, now: dict[str, Tensor | None]) -> Iterator[str]:
        """Yield each tensor that cannot go back, and why."""
        held, own = self._held(), {id(slot.tensor): slot.name for slot in self._slots}
        for slot in self._slots:
            name, before, found = slot.name, slot.home, now[slot.name]
            if found is None:
                yield f"{name} is gone"
            elif own.get(id(found), name) != name:
                yield f"{name} is now {own[id(found)]} itself"
            elif (found.shape, found.dtype, found.device) != (before.shape, before.dtype, before.device):
                yield f"{name} was {_described(before)} and is {_described(found)}"
            elif found is not slot.tensor and isinstance(found, nn.Parameter) and self._averages_gradients:
                yield f"{name} is another Parameter object, whose gradient would not be averaged"
            elif found is not slot.tensor and id(slot.tensor) in held and id(found) not in held:
                yield f"{name} is another Parameter object than the one that the optimizer of setup trains"
            elif slot.trained_by and found.requires_grad and self._trained_by(found) is not slot.trained_by:
                yield f"{name} has lost its hook, by which gradients are averaged (set_, another dtype, another device)"
        parameters = {name: found for name, found in now.items() if isinstance(found, nn.Parameter)}
        for one, other in in_same_memory(parameters):
            yield f"{other} shares memory with {one} ({TIE})"

    def _additions(self, present: dict[str, Tensor], now: dict[str, Tensor | None]) -> Iterator[str]:
        """Yield each tensor that was not there at setup, of the model and of the optimizer."""
        expected = {id(tensor) for tensor in (*now.values(), *(slot.tensor for slot in self._slots))}
        for name, tensor in present.items():
            if id(tensor) not in expected:
                kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer (persistent=False keeps it local)"
                yield f"{name} is a new {kind}"
        for number, group in enumerate(self._optimizer.param_groups):
            for parameter in group["params"]:
                if id(parameter) not in expected | self._strangers:
                    shape = tuple(parameter.shape)
                    yield f"the optimizer's group {number} has a new parameter {shape} that is none of the model's"

    def _report(self, names: list[str]) -> None:
        if fresh := [name for name in names if name not in self._said]:
            self._said.update(fresh)
            log.warning(
                "%s got other memory after setup, which synchronisation does not see: its values were copied back. "
                "Write into the tensor instead (copy_), or change it before setup. This is said once per tensor.",
                ", ".join(fresh[:SHOWN]) + (f" and {len(fresh) - SHOWN} more" if len(fresh) > SHOWN else ""),
            )


def checked_hooks(sync: Any, *, gradients: bool) -> dict[str, Callable[..., Any]]:
    """Return the hooks of a mode that use the model's storage, each behind a check of it by `sync._guard`.

    They hide the methods in the instance, so that no mode need think of it, one of a user's own included. `sync`: a
    SyncStrategy. `gradients`: it averages gradients before the step.
    """
    hooks = ("flush", "consensus_distance", "state_dict", "load_state_dict", *(("before_step",) if gradients else ()))
    others: dict[str, Callable[..., Any]] = {
        "after_step": partial(_after_step, sync),
        "eval_weights": partial(_eval_weights, sync),
    }
    return {hook: partial(_checked, sync, hook) for hook in hooks} | others


def _checked(sync: Any, hook: str, *args: Any, **named: Any) -> Any:
    sync._guard.check()
    return getattr(type(sync), hook)(sync, *args, **named)


def _after_step(sync: Any, step: int) -> None:
    if sync._exchanges(step):
        sync._guard.check()
    type(sync).after_step(sync, step)


@contextmanager
def _eval_weights(sync: Any) -> Iterator[None]:
    sync._guard.check()
    with type(sync).eval_weights(sync):
        try:
            yield
        finally:
            sync._guard.check()  # a forward pass may have assigned buffers, which are restored next


_POINTER = Tensor.data_ptr


def _left(slot: _Slot, found: Tensor) -> bool:
    """Return whether the tensor is another object than at setup, or lies elsewhere."""
    place = found.data_ptr(), found.stride()
    return found is not slot.tensor or (found.numel() > 0 and place != (slot.home.data_ptr(), slot.home.stride()))


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
