"""Comparison of a loaded state with the state that a run has, before any part of the run takes it."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

LARGEST = 2**63  # steps, bytes and seeds are 64-bit integers
# Moments of torch's optimizers: one number for each number of the parameter.
_LIKE_THE_PARAMETER = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "sum")


def difference(expected: Any, found: Any, where: str) -> str | None:
    """Return where `found` cannot take the place of `expected`, in words; None if it can.

    Compared are kinds, lengths and shapes. What this run does not have yet (None, an empty dict or list) may be
    anything, a key that is missing is left to the part that reads it, and keys of other versions are ignored.
    """
    if expected is None or (isinstance(expected, dict | list | tuple) and not expected):
        return None
    if isinstance(expected, Tensor):
        return _tensors(expected, found, where)
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            return f"{where}: found {_kind(found)}, expected a dict"
        return _first(difference(expected[key], found[key], f"{where}.{key}") for key in expected if key in found)
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple):
            return f"{where}: found {_kind(found)}, expected a list"
        if found and len(found) != len(expected):
            return f"{where}: found {len(found)} values, expected {len(expected)}"
        pairs = enumerate(zip(expected, found, strict=False))
        return _first(difference(one, other, f"{where}[{index}]") for index, (one, other) in pairs)
    return _scalars(expected, found, where)


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)


def _tensors(expected: Tensor, found: Any, where: str) -> str | None:
    if not isinstance(found, Tensor) and found is not None:
        return f"{where}: found {_kind(found)}, expected a tensor"
    if found is not None and (found.shape, found.is_floating_point()) != (expected.shape, expected.is_floating_point()):
        shapes = f"{tuple(found.shape)} {found.dtype}, expected {tuple(expected.shape)} {expected.dtype}"
        return f"{where}: found {shapes}"
    return None


def _scalars(expected: Any, found: Any, where: str) -> str | None:
    number = isinstance(expected, int | float)
    if not (found is None or isinstance(found, int | float if number else type(expected))):
        return f"{where}: found {_kind(found)}, expected {_kind(expected)}"
    if isinstance(found, int) and not -LARGEST <= found < LARGEST:
        return f"{where}: found an integer of {found.bit_length()} bits, expected at most 64"
    return None


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def misshapen_moment(optimizer: Optimizer) -> str | None:
    """Return which moment does not have the shape of its parameter; None if all have."""
    for index, (parameter, moments) in enumerate(optimizer.state.items()):
        for name in _LIKE_THE_PARAMETER:
            moment = moments.get(name)
            if isinstance(moment, Tensor) and moment.numel() > 1 and moment.shape != parameter.shape:
                return (
                    f"optimizer.state[{index}].{name}: found {tuple(moment.shape)}, expected {tuple(parameter.shape)}"
                )
    return None
