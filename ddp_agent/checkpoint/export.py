"""The final model as two files, which load without the run's configuration: weights and a description.

One rename decides which model the two files hold, that of the description: it names the sha256 of its weights. These
wait beside it under a name with that hash, and get their own name afterwards. Killed anywhere, the run leaves an export
that loads: the earlier one, or this one.
"""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ddp_agent.checkpoint.manifest import File
from ddp_agent.config.registry import build, is_own
from ddp_agent.config.untrusted import plain, read_json
from ddp_agent.errors import CheckpointError, ConfigError
from ddp_agent.models.common.meta_build import build_on_meta
from ddp_agent.models.common.multi_task import with_heads
from ddp_agent.outputs.files import fsync, replacing, to_json, write_atomically

FORMAT = 1
WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
_LIMIT_BYTES = 16 << 20
_GIVEN_BY_THE_DATA = ("input_shape", "outputs")  # offered to every model, as in a run


def save(run_dir: Path, model: nn.Module, *, description: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `model.json`. Raises CheckpointError when that fails.

    `description` needs the `name` of a class that `build` finds and its `arguments`, including `input_shape` and
    `outputs`. For a model with several heads it has `tasks`, the number of outputs per head. Further entries (the
    metric, say) are stored, too.
    """
    path = run_dir / WEIGHTS
    # safetensors refuses other strides, such as channels-last ones.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(model).items()}
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with replacing(run_dir / f".{WEIGHTS}") as temporary:
            save_file(tensors, temporary)
        weights = File.of(run_dir / f".{WEIGHTS}")
        waiting = _waiting(run_dir, weights)
        os.replace(run_dir / f".{WEIGHTS}", waiting)
        about = {**description, "format": FORMAT, "weights": vars(weights)}
        try:
            write_atomically(run_dir / DESCRIPTION, to_json(about, indent=2) + "\n")
        except OSError:
            waiting.unlink()
            raise
        os.replace(waiting, path)
        fsync(run_dir)
        for stale in run_dir.glob(f".{WEIGHTS}.*"):  # of runs that were killed
            stale.unlink()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} was not saved: {error}") from error


def _waiting(run_dir: Path, weights: File) -> Path:
    """Return the name of a description's weights until the description has its name."""
    return run_dir / f".{WEIGHTS}.{weights.sha256[:16]}"


def load(run_dir: Path | str, *, trusted_packages: Sequence[str] = ()) -> nn.Module:
    """Return the exported model, on the CPU and in eval mode.

    Its class must be one of this package or of a trusted one. Raises CheckpointError when a file is missing or damaged,
    or when the two do not fit each other.
    """
    run_dir = Path(run_dir)
    about = _read_description(run_dir / DESCRIPTION)
    tensors = _read_tensors(run_dir, about)
    try:
        construct = functools.partial(
            _rebuild, about["name"], about["arguments"], about.get("tasks") or {}, trusted_packages
        )
        if is_own(about["name"]) and (values := _values_in(about["arguments"])) > 1000 + 10 * len(tensors):
            raise ValueError(f"found {values:,} values in its arguments, expected fewer for {len(tensors)} tensors")
        if is_own(about["name"]):  # other classes may need numbers to be built: their shapes are compared later
            _check_layout(_in_dtype_of(build_on_meta(construct), tensors), tensors, run_dir / WEIGHTS)
        model = construct()
        if any(map(is_lazy, chain(model.parameters(), model.buffers()))):
            model.load_state_dict(tensors, strict=False)  # gives them shapes, which are compared below
    except (ConfigError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{run_dir / DESCRIPTION}: no model can be built from it: {plain(error, 500)}") from error
    _fill(_in_dtype_of(model, tensors), tensors, run_dir / WEIGHTS)
    return model.eval()


def _values_in(tree: Any) -> int:
    """Return the number of values in a tree of JSON: each may be a layer, which takes a millisecond to build."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return 1 + sum(map(_values_in, inner))


def _in_dtype_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Convert `model` to the floating-point type of `tensors`, if they have a single one."""
    floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return model.to(floating.pop()) if len(floating) == 1 else model


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the persistent state by name. A tensor with several names (tied weights) has the first one."""
    unique: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name}: found {type(value).__name__}, only tensors can be exported")
        unique.setdefault(id(value), (name, value))
    return dict(unique.values())


def _read_description(path: Path) -> dict[str, Any]:
    try:
        about = read_json(path, _LIMIT_BYTES, below=path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}, expected the description of a model") from error
    expected = {"format": int, "name": str, "arguments": dict, "weights": dict}
    for key, kind in expected.items():
        value = about.get(key) if isinstance(about, dict) else None
        if not isinstance(value, kind):
            raise CheckpointError(f"{path}: {key}: found {plain(repr(value), 80)}, expected {kind.__name__}")
    if about["format"] != FORMAT:
        raise CheckpointError(f"{path}: format: found {about['format']}, expected {FORMAT}")
    assert isinstance(about, dict)
    return about


def _read_tensors(run_dir: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    path = run_dir / WEIGHTS
    try:
        weights = File(**about["weights"])
        if type(weights.size_bytes) is not int or not re.fullmatch("[0-9a-f]{64}", weights.sha256):
            raise TypeError("found no size and sha256")
        if os.path.lexists(waiting := _waiting(run_dir, weights)):  # the run was killed between two renames
            path = waiting
        weights.check(path, below=run_dir)
        return load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}, expected a model's weights") from error
    except (SafetensorError, TypeError) as error:
        raise CheckpointError(f"{path}: not what {DESCRIPTION} describes ({plain(error, 200)})") from error


def _rebuild(
    name: str, arguments: Mapping[str, Any], tasks: Mapping[str, int], trusted_packages: Sequence[str]
) -> nn.Module:
    given = {key: arguments[key] for key in _GIVEN_BY_THE_DATA if key in arguments}
    if isinstance(given.get("input_shape"), list):
        given["input_shape"] = tuple(given["input_shape"])
    own = {key: value for key, value in arguments.items() if key not in given}
    with torch.random.fork_rng(devices=[]):  # initial weights must not advance the caller's random stream
        model = build("model", {"name": name, **own}, trusted_packages=trusted_packages, **given)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"name: found {name!r}, expected a torch.nn.Module")
        return with_heads(model, tasks) if tasks else model


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    _check_layout(model, tensors, path)
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(tensors[name])


def _check_layout(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    wanted = _tensors(model)
    problems = [
        f"{name}: found {_layout(tensors.get(name))}, expected {_layout(wanted.get(name))}"
        for name in sorted(wanted.keys() | tensors.keys())
        if _layout(tensors.get(name)) != _layout(wanted.get(name))
    ]
    if problems:
        more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise CheckpointError("\n  ".join([f"{path} does not fit its model", *problems[:5], *more]))


def _layout(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
