"""A module's parameters and buffers as views of one tensor, so that synchronising them needs no packing."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Flat:
    """Re-homes `module` in place: `everything` = [parameters | floating-point buffers], in registration order.

    Every parameter counts, whether or not it is trained or had a gradient, so the layout is the same on every rank.
    Shapes, strides (channels-last) and tensor identity are kept: optimizers and wrappers that hold the tensors go on
    working, and the module's weights change when `everything` does. Buffers of another dtype than the parameters'
    stay where they are and are listed in `others`; non-persistent buffers are no state of the model and are left out.

    Raises ValueError when parameters differ in dtype or device: one tensor cannot hold them.
    """

    def __init__(self, module: nn.Module) -> None:
        named = dict(module.named_parameters())
        if not named:
            raise ValueError("the model has no parameters, so there is nothing to train or synchronise")
        first_name, first = next(iter(named.items()))
        for name, parameter in named.items():
            if (parameter.dtype, parameter.device) != (first.dtype, first.device):
                raise ValueError(
                    f"parameters must share one dtype and device, found {first_name}: {first.dtype} on {first.device} "
                    f"and {name}: {parameter.dtype} on {parameter.device}; for mixed precision use autocast"
                )
        buffers = dict(persistent_buffers(module))
        homed = {name: buffer for name, buffer in buffers.items() if buffer.dtype == first.dtype}
        self.others = [buffer for name, buffer in buffers.items() if name not in homed]
        self.everything = rehome([*named.values(), *homed.values()], first.dtype, first.device)
        self._places = [(p.size(), p.stride(), p.storage_offset()) for p in named.values()]
        self.shapes = [parameter.shape for parameter in named.values()]
        count = sum(shape.numel() for shape in self.shapes)
        self.parameters, self.buffers = self.everything[:count], self.everything[count:]
        described = "\n".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in {**named, **buffers}.items())
        self.layout_sha256 = hashlib.sha256(described.encode()).hexdigest()

    def views_of(self, other: Tensor) -> list[Tensor]:
        """Of a tensor as long as `parameters`: what lies where each parameter lies, in its shape and strides."""
        return [other.as_strided(size, strides, offset) for size, strides, offset in self._places]

    def snapshot(self) -> list[Tensor]:
        """Copies of all state, for `restore`."""
        return [tensor.clone() for tensor in (self.everything, *self.others)]

    def restore(self, snapshot: Iterable[Tensor]) -> None:
        for tensor, saved in zip((self.everything, *self.others), snapshot, strict=True):
            tensor.copy_(saved)


def persistent_buffers(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    saved = module.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in module.named_buffers() if name in saved)


@torch.no_grad()
def rehome(tensors: list[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One new tensor that holds all of `tensors`, which become views of it. No padding: bytes sent are bytes used."""
    flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=device)
    offset = 0
    for tensor in tensors:
        strides = torch.empty_like(tensor).stride()  # dense, and the tensor's own where those are dense already
        view = flat.as_strided(tensor.size(), strides, offset)
        view.copy_(tensor)
        tensor.set_(view.untyped_storage(), offset, view.size(), strides)
        offset += tensor.numel()
    return flat
