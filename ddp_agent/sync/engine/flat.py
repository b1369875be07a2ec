"""A module's parameters and buffers as views of one tensor, so that synchronising them needs no packing."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.consistency import differing_ranks

TIE = "tie two parameters by making them one (b.weight = a.weight)"


class Flat:
    """One tensor, `everything` = [parameters | floating-point buffers] in registration order, that `module` views.

    The module's tensors are moved in place. Every parameter counts, whether or not it is trained or had a gradient, so
    the layout is the same on every rank. Shapes, strides (channels-last) and tensor identity are kept: optimizers and
    wrappers that hold the tensors keep working, and the module's weights change when `everything` does. Buffers of
    another dtype than the parameters' are not moved and are listed in `others`. Non-persistent buffers are no state of
    the model and are left out. Raises ValueError when parameters differ in dtype or device, or share memory.
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
        for one, other in in_same_memory(named):  # each gets a place of its own, which would untie them
            raise ValueError(f"{other} shares memory with {one}; {TIE}")
        buffers = dict(persistent_buffers(module))
        homed = [buffer for buffer in buffers.values() if buffer.dtype == first.dtype]
        everything = rehome([*named.values(), *homed], first.dtype, first.device)
        count = sum(parameter.numel() for parameter in named.values())
        self.stretches = [everything]
        self._describe(named, buffers, everything[:count], everything[count:])

    @classmethod
    def of(cls, module: nn.Module) -> "Flat":
        """Return the flat tensor of `module`. A `Part` shares the one of the module that it was taken from."""
        return module.flat if isinstance(module, Part) else cls(module)

    def part(self, named: Mapping[str, nn.Parameter], buffers: Mapping[str, Tensor]) -> "Flat":
        """Return a view of this object for some of the parameters and buffers, which are not moved.

        Raises ValueError unless they are adjacent, since each part is averaged in one piece.
        """
        parameters = self._stretch(list(named.values()))
        homed = self._stretch([buffer for buffer in buffers.values() if buffer.dtype == parameters.dtype])
        part = Flat.__new__(Flat)
        part.stretches = [parameters, homed] if homed.numel() else [parameters]
        part._describe(named, buffers, parameters, homed)
        return part

    def _stretch(self, tensors: Sequence[Tensor]) -> Tensor:
        start = end = tensors[0].storage_offset() if tensors else 0
        for tensor in tensors:
            if tensor.storage_offset() != end:
                raise ValueError("its parameters do not lie side by side: register heads behind what all ranks train")
            end += tensor.numel()
        return self.everything[start:end]

    def _describe(
        self, named: Mapping[str, nn.Parameter], buffers: Mapping[str, Tensor], parameters: Tensor, homed: Tensor
    ) -> None:
        self.named, self.parameters, self.buffers = dict(named), parameters, homed
        self.others = [buffer for buffer in buffers.values() if buffer.dtype != parameters.dtype]
        start = parameters.storage_offset()
        self._places = [(p.size(), p.stride(), p.storage_offset() - start) for p in named.values()]
        self.shapes = [parameter.shape for parameter in named.values()]
        described = "\n".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in {**named, **buffers}.items())
        self.layout_sha256 = hashlib.sha256(described.encode()).hexdigest()

    @property
    def everything(self) -> Tensor:
        """[parameters | floating-point buffers] as one tensor. A part of a model has none: it has two stretches."""
        (everything,) = self.stretches
        return everything

    def views_of(self, other: Tensor) -> list[Tensor]:
        """Return views of a tensor as long as `parameters`, one per parameter, in its place, shape and strides."""
        start = other.storage_offset()
        return [other.as_strided(size, strides, start + offset) for size, strides, offset in self._places]

    def snapshot(self) -> list[Tensor]:
        """Return copies of all state, for `restore`."""
        return [tensor.clone() for tensor in (*self.stretches, *self.others)]

    def restore(self, snapshot: Iterable[Tensor]) -> None:
        """Copy a `snapshot` back."""
        for tensor, saved in zip((*self.stretches, *self.others), snapshot, strict=True):
            tensor.copy_(saved)


class Part(nn.Module):
    """Some of a module's parameters and buffers, by their names, as a module that a sync mode can be set up with.

    A call of it calls `whole`, so that a wrapper of it wraps the whole. `flat` describes its stretches of the whole.
    """

    def __init__(self, whole: nn.Module, module: nn.Module, flat: Flat, belongs: Callable[[str], bool]) -> None:
        """Take the parameters of `module` that belong. `whole`: `module` or its wrapper. Raise ValueError for none."""
        super().__init__()
        self._whole = (whole,)  # in a tuple, so that it is not registered as a submodule
        # Not by `register_parameter`, which refuses dots: the names must be those of the module.
        self._parameters.update({name: tensor for name, tensor in module.named_parameters() if belongs(name)})
        self._buffers.update({name: tensor for name, tensor in persistent_buffers(module) if belongs(name)})
        if not self._parameters:
            raise ValueError("it has no parameters")
        self.flat = flat.part(dict(self.named_parameters()), dict(self.named_buffers()))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._whole[0](*inputs, **named)

    def train(self, mode: bool = True) -> "Part":
        self._whole[0].train(mode)
        return super().train(mode)


def persistent_buffers(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Return name and tensor of each buffer that is saved with the model."""
    saved = module.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in module.named_buffers() if name in saved)


def in_same_memory(named: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the names of each two tensors that overlap in memory: tied by `b.data = a.data`, for example."""
    spans = sorted((t.data_ptr(), t.data_ptr() + _extent(t), name) for name, t in named.items() if t.numel())
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end:
            yield one, other


def _extent(tensor: Tensor) -> int:
    """Return the bytes from a tensor's first number to its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def require_same_model(model: nn.Module, flat: Flat, comm: Comm, *, trained: bool) -> None:
    """Raise ValueError on every rank, naming the ranks that differ from rank 0, when the ranks' models differ.

    With `trained`, ranks must also train the same parameters: DDP's buckets would differ. A collective.
    """
    sha256_of = {"the model's parameters and buffers": flat.layout_sha256}
    if trained:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        trained_sha256 = hashlib.sha256("\n".join(names).encode()).hexdigest()
        sha256_of["the parameters that are trained (requires_grad)"] = trained_sha256
    for name, ranks in differing_ranks(sha256_of, comm).items():
        raise ValueError(f"{name} differ between ranks: not as on rank 0 are ranks {ranks}; check code and config")


@torch.no_grad()
def rehome(tensors: list[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a new tensor that holds all `tensors`, which become views of it. Without padding, which would travel."""
    flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=device)
    offset = 0
    for tensor in tensors:
        strides = torch.empty_like(tensor).stride()  # dense; the tensor's own where these are dense already
        view = flat.as_strided(tensor.size(), strides, offset)
        view.copy_(tensor)
        tensor.set_(view.untyped_storage(), offset, view.size(), strides)
        offset += tensor.numel()
    return flat
