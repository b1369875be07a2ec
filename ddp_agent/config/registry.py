"""Registry of the classes that a configuration can name, and `build`, which makes an object from a config node.

`name:` finds the class, and the annotations of its constructor are the schema. Classes are found by reading source
files, so that naming a class imports its module and no other: a run without torchvision does not import it. Nothing
outside this package can be named, except `module:Name` of a package that the user lists as trusted: a config file from
someone else must not be code.
"""

import ast
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddp_agent.config.fields import REQUIRED, Parameter, coerce, describe, expected, fits, parameters
from ddp_agent.config.redaction import redacted_value
from ddp_agent.config.suggestions import nearest, unknown
from ddp_agent.config.untrusted import plain
from ddp_agent.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
PLACES = {
    "model": "models",
    "dataset": "data/datasets",
    "slicing": "data/slicing",
    "sync": "sync",
    "cadence": "sync/cadences",
    "reducer": "reducers",
    "optimizer": "training/optimizers",
    "schedule": "training/schedules",
}
"""Folder or file of each config group. Every public class in its own files can be chosen, unless it is abstract; helper
classes are private, or stand one folder below."""
LONGEST = 500  # characters of a value that a message shows
_BASES = ("__init__", "base", "periodic")  # files that hold base classes instead


def build(group: str, node: Mapping[str, Any], *, trusted_packages: Sequence[str] = (), **runtime: Any) -> Any:
    """Return the object that `node` describes. Raise ConfigError with every problem of the node at once.

    `runtime` holds the values that only the run knows (`input_shape`, `data_root`, …); a constructor is given those
    that it names.

    Examples:
        >>> build("reducer", {"name": "Cast", "dtype": "bf16"})
        Cast(dtype='bf16')
        >>> build("reducer", {"name": "Cast", "dtype": "fp8"})
        Traceback (most recent call last):
        ddp_agent.errors.ConfigError: reducer.dtype: found 'fp8', expected one of bf16, fp16
    """
    if wrong := problems(group, node, trusted_packages=trusted_packages, runtime=runtime):
        raise ConfigError(wrong)
    target = locate(group, node["name"], trusted_packages)
    accepted = parameters(target)
    values = {key: coerce(value, accepted[key].annotation) for key, value in node.items() if key != "name"}
    values |= {key: value for key, value in runtime.items() if key in accepted}
    try:
        return target(**values)
    except ValueError as error:
        raise ConfigError(f"{group}: {error}") from error


def problems(
    group: str, node: Mapping[str, Any], *, trusted_packages: Sequence[str] = (), runtime: Iterable[str] = ()
) -> list[str]:
    """Return one line per problem of `node`; none when `build` would accept its keys and values."""
    name = node.get("name")
    if not isinstance(name, str):
        return [f"{group}.name: found {name!r}, expected the name of a class"]
    try:
        accepted = parameters(locate(group, name, trusted_packages))
    except ConfigError as error:
        return error.problems
    given = {key: value for key, value in node.items() if key != "name"}
    return schema_problems(given, accepted, prefix=f"{group}.", runtime=runtime, owner=name)


def schema_problems(
    given: Mapping[str, Any],
    accepted: Mapping[str, Parameter],
    *,
    prefix: str = "",
    runtime: Iterable[str] = (),
    also_known: Iterable[str] = (),
    owner: str = "",
) -> list[str]:
    """Return one line per key that is unknown, missing, set twice or has a wrong value. `owner`: the class's name."""
    runtime = set(runtime)
    shown = {key: redacted_value(key, value) for key, value in given.items()}
    known = [*(accepted.keys() - runtime), *also_known]
    lines = [f"{prefix}{key}: {unknown(f'{prefix}{key}', known, owner)}" for key in given if key not in accepted]
    for key, parameter in accepted.items():
        if key in given and key in runtime:
            lines.append(f"{prefix}{key}: found {_short(shown[key])}, but the run itself sets it; leave it out")
        elif key in given and not fits(given[key], parameter.annotation):
            lines.append(
                f"{prefix}{key}: found {_short(shown[key])}, expected {expected(given[key], parameter.annotation)}"
            )
        elif key not in given and key not in runtime and parameter.default is REQUIRED:
            lines.append(f"{prefix}{key}: missing, expected {describe(parameter.annotation)}")
    return lines


def _short(value: Any) -> str:
    return plain(repr(value), LONGEST)


def locate(group: str, name: str, trusted_packages: Sequence[str] = ()) -> type:
    """Return the class called `name` in this group, or `module:Name` of a trusted package. Raise ConfigError."""
    if not is_own(name):
        return _trusted(group, name, trusted_packages)
    known = classes(group)
    if name not in known:
        near = nearest(name, known)
        hint = f", did you mean {near}?" if near else ""
        raise ConfigError(f"{group}.name: found {name!r}{hint} (known: {', '.join(sorted(known))})")
    return getattr(importlib.import_module(known[name]), name)  # type: ignore[no-any-return]


def is_own(name: str) -> bool:
    """Return True if `name` names a class of this package."""
    return ":" not in name


def _trusted(group: str, name: str, trusted_packages: Sequence[str]) -> type:
    """Return a public class that the trusted package defines itself. What the package imports is not trusted."""
    module, _, attribute = name.partition(":")
    package = module.partition(".")[0]
    if package not in trusted_packages:
        raise ConfigError(f"{group}.name: found {name!r}, but trusted_packages does not list {package!r}")
    if not all(part.isidentifier() and not part.startswith("_") for part in (*module.split("."), attribute)):
        raise ConfigError(f"{group}.name: found {name!r}, expected module:Class of public names")
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{group}.name: found {name!r}, which cannot be imported: {error}") from error
    if not isinstance(target, type):
        raise ConfigError(f"{group}.name: found {name!r}, expected a class")
    if target.__module__.partition(".")[0] != package:
        raise ConfigError(
            f"{group}.name: found {name!r}, which is {target.__module__}:{target.__qualname__}; expected a class that "
            f"{package} itself defines"
        )
    return target


def lazy_exports(group: str, others: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for the package of a group: it exports the group's classes, each imported when asked for.

    `others` names further exports and their modules. A new class needs no line in the package's `__init__.py`.
    """

    def export(name: str) -> Any:
        exports = {**others, **({} if name.startswith("_") else classes(group))}
        if name == "__all__":
            return sorted({**others, **classes(group)})
        if name not in exports:
            raise AttributeError(f"{group}: found {name!r}, expected one of {', '.join(sorted(exports))}")
        return getattr(importlib.import_module(exports[name]), name)

    return export


def classes(group: str) -> dict[str, str]:
    """Return the module of each class of a group, by the class's name. Nothing is imported."""
    return {name: module for name, (module, _) in definitions(group).items()}


@functools.cache
def definitions(group: str) -> dict[str, tuple[str, str]]:
    """Return (module, first line of the docstring) of each class of a group, by the class's name."""
    place = PACKAGE / PLACES[group]
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    choices = {}
    for file in files:
        if file.stem in _BASES:
            continue
        module = ".".join(("ddp_agent", *file.relative_to(PACKAGE).with_suffix("").parts))
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not _is_abstract(node):
                choices[node.name] = (module, (ast.get_docstring(node) or "").partition("\n")[0])
    return choices


def _is_abstract(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "ABC" for base in node.bases)
