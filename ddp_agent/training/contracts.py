"""Checks of the results of a model, a loss and a metric against their contract (see `data.task`)."""

import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import Tensor

from ddp_agent.data.task import Criterion

REPEATED = 4  # samples of which a loss is computed once, twice and three times over
TOLERANCE = 1e-3
_NOT_THE_USER_S = (str(Path(torch.__file__).parent), __file__, "<")
_BROADCAST = (
    "each sample is compared with all targets; squeeze the model's output, or give the targets a second dimension"
)


class BreachError(Exception):
    """A piece that breaks its contract. What follows from its result cannot be checked."""


def called(what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return what `function` returns. If it raises a usual error, raise BreachError, whose text begins with `what`."""
    try:
        with warnings.catch_warnings():
            # torch only warns where a prediction is compared with the targets of all samples.
            warnings.filterwarnings("error", message="Using a target size")
            return function(*arguments, **named)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, AssertionError, UserWarning) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BreachError(f"{what}: {_BROADCAST if isinstance(error, UserWarning) else in_a_line(error)}") from error


def require_output(output: Any, samples: int, device: torch.device, model: str) -> None:
    """Raise BreachError unless `output` is one tensor of real numbers [samples, …] on `device`."""
    if not isinstance(output, Tensor):
        raise BreachError(f"{model} returns {described(output)}, expected one tensor [samples, …]")
    if not output.is_floating_point():
        raise BreachError(f"{model} returns {described(output)}, expected floating-point numbers")
    if output.device.type != device.type:
        raise BreachError(f"{model} returns a tensor on {output.device}, expected {device}")
    if output.dim() == 0 or len(output) != samples:
        raise BreachError(f"{model} returns {described(output)} for {samples} samples, expected [{samples}, …]")


def require_classes(output: Tensor, target: Tensor, classes: int, model: str) -> None:
    """Raise BreachError unless each sample has a number per class and a label below `classes`.

    Labels are compared before the loss sees them: on a GPU one that is out of range ends the process.
    """
    if output.dim() != 2 or output.shape[1] != classes:
        raise BreachError(
            f"{model} returns {described(output)}, expected [{len(output)}, {classes}]: one number for each of the "
            f"{classes} classes"
        )
    if target.dim() == 1 and not (target.is_floating_point() or target.is_complex()):
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= classes:
            raise BreachError(f"dataset: found labels from {low} to {high}, expected 0 to {classes - 1}")


def loss_of(criterion: Criterion, output: Tensor, target: Tensor) -> Tensor:
    """Return the loss. Raise BreachError unless it is one real number, the mean over the samples."""
    what = compared("loss", output, target)
    loss = called(what, criterion, output, target)
    if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
        raise BreachError(
            f"dataset: its loss returns {described(loss)}, expected a tensor with one real number, the mean over the "
            "batch (reduction='mean')"
        )
    if loss.device.type != output.device.type:
        raise BreachError(f"dataset: its loss is on {loss.device}, expected {output.device}")
    with torch.no_grad():
        if _is_broadcast(criterion, output.detach(), target, loss.detach()):
            raise BreachError(f"{what}: {_BROADCAST}")
        if growth := _growth(criterion, output.detach(), target):
            raise BreachError(
                f"dataset: its loss grows with the number of samples, {growth:.3g} times for the same samples twice; "
                "expected their mean (reduction='mean', not 'sum')"
            )
    return loss


def _is_broadcast(criterion: Criterion, output: Tensor, target: Tensor, loss: Tensor) -> bool:
    """Return True if a column [samples, 1] is compared with [samples], and the loss is another one without that."""
    samples = len(output)
    shapes = {output.shape, target.shape}
    if samples < 2 or not target.is_floating_point() or shapes != {(samples,), (samples, 1)}:
        return False
    try:
        flat = criterion(output.flatten(), target.flatten())
    except Exception:  # a loss that needs the column
        return False
    return bool((flat - loss).abs() > TOLERANCE * loss.abs())


def _growth(criterion: Criterion, output: Tensor, target: Tensor) -> float | None:
    """Return the loss of the same samples twice over that of once, if it grows by an equal amount each time, else None.

    A mean of the same samples stays when they are repeated. A loss with negatives from the batch grows too, but by a
    logarithm. A loss that cannot take another number of samples is not tried.
    """
    few, some = output[:REPEATED].float(), target[:REPEATED]
    try:
        once, twice, thrice = (
            float(criterion(torch.cat([few] * times), torch.cat([some] * times))) for times in (1, 2, 3)
        )
    except Exception:  # what the loss needs is not known here, and the whole batch was fine
        return None
    slope, bend = twice - once, thrice - 2 * twice + once
    grows = abs(slope) > TOLERANCE * max(abs(once), abs(twice)) and abs(bend) < TOLERANCE * abs(slope)
    return twice / once if grows and once else None


def metric_problem(value: Any, samples: int, device: torch.device) -> str:
    """Return what is wrong with a metric's result, from 'returns' on; empty for one real number per sample."""
    found = f"returns {described(value)} for {samples} samples"
    if not isinstance(value, Tensor) or value.is_complex():
        return f"{found}, expected a tensor [{samples}] of real numbers"
    if value.numel() != samples or (value.dim() == 0 and samples > 1) or (value.dim() and len(value) != samples):
        return f"{found}, expected one number per sample, [{samples}] (no mean over the samples)"
    return "" if value.device.type == device.type else f"returns a tensor on {value.device}, expected {device}"


def described(value: Any) -> str:
    """Return type, dtype and shape of a value in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, list | tuple) and len(value) <= 5:
        return f"a {type(value).__name__} of ({', '.join(map(described, value))})"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, list(value)[:5]))}"
    if is_dataclass(value):
        return f"{type(value).__name__} with {', '.join(each.name for each in fields(value)[:5])}"
    return f"{type(value).__name__}" if value is not None else "None"


def compared(name: str, output: Tensor, target: Tensor) -> str:
    """Return the beginning of a message about a function of an output and a target."""
    return f"dataset: its {name} fails for outputs {described(output)} and targets {described(target)}"


def in_a_line(error: BaseException) -> str:
    """Return kind, text and place of an error. A worker's error holds a traceback as text, whose last line counts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    line = lines[-1] if "Traceback" in str(error) else lines[0]
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_THE_USER_S)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {line[:200]}{place}"
