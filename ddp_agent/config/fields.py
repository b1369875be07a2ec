"""Types and ranges of parameters, written once, in the annotations of constructors."""

import dataclasses
import inspect
import math
import os
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from ddp_agent.config.secret_text import names_secret


@dataclass(frozen=True)
class Range:
    """Range of numbers from `low` to `high`. `above` excludes `low`, `below` excludes `high`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (
            (self.above and value == self.low) or (self.below and value == self.high)
        )

    def __str__(self) -> str:
        low = f"{'>' if self.above else '>='} {self.low:g}" if self.low > -math.inf else ""
        high = f"{'<' if self.below else '<='} {self.high:g}" if self.high < math.inf else ""
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True)
class Pattern:
    """Strings that a regular expression matches as a whole. `words` describes them in an error message."""

    regex: str
    words: str

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.regex, value) is not None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Hint:
    """Any value, with a `remedy` that follows the type in an error message."""

    remedy: str

    def __contains__(self, value: object) -> bool:
        return True

    def __str__(self) -> str:
        return self.remedy


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Layers = Annotated[int, Range(1, 1000)]  # each takes time, if no memory
PositiveFloat = Annotated[float, Range(0, above=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(0, 1, above=True)]
Decay = Annotated[float, Range(0, 1, below=True)]  # of a moving average, which 1 would keep from moving

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)

REQUIRED = inspect.Parameter.empty

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "a string",
    Path: "a path",
    type(None): "null",
}


@dataclass(frozen=True)
class Parameter:
    """One keyword of a constructor. `default` is `REQUIRED` when there is none."""

    annotation: Any
    default: Any


def parameters(target: type) -> dict[str, Parameter]:
    """Return the keywords that `target(...)` takes, with their annotations (`Annotated` kept)."""
    if dataclasses.is_dataclass(target):
        hints = typing.get_type_hints(target, include_extras=True)
        fields = [field for field in dataclasses.fields(target) if field.init]
        return {field.name: Parameter(hints[field.name], _dataclass_default(field)) for field in fields}
    constructor: Any = target.__init__  # type: ignore[misc]
    hints = typing.get_type_hints(constructor, include_extras=True)
    signature = list(inspect.signature(constructor).parameters.values())[1:]
    return {
        parameter.name: Parameter(hints.get(parameter.name, Any), parameter.default)
        for parameter in signature
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _dataclass_default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def describe(annotation: Any) -> str:
    """Return what `annotation` accepts, in the words of an error message.

    Examples:
        >>> describe(PositiveInt | None)
        'an integer >= 1 or null'
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return f"{describe(arguments[0])} {arguments[1]}"
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"a list, each {describe(arguments[0])}"
    if origin in (dict, Mapping) or annotation is dict:
        return "a mapping"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def fits(value: Any, annotation: Any) -> bool:
    """Return True if `value` has the annotated type and range. An int is a float, a bool is no number, NaN never fits.

    Examples:
        >>> fits(0.5, Fraction), fits(1, Fraction), fits(True, Fraction), fits(1.5, Fraction)
        (True, True, False, False)
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin is Annotated:
        return fits(value, arguments[0]) and value in arguments[1]
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin in (tuple, list):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if annotation is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool) and _fits_a_word(value)
    if annotation is Path:
        return isinstance(value, str | Path) and _names_a_file(str(value))
    return isinstance(value, annotation)


def _names_a_file(text: str) -> bool:
    """Return True for a text that the file system may know: no zero byte, no half of a character."""
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _fits_a_word(value: int) -> bool:
    """Return True for a size, step or seed that torch can have: 64 bits with sign."""
    return -(2**63) <= value < 2**63


def expected(value: Any, annotation: Any) -> str:
    """Return what would be right in place of `value`, in the words of an error message."""
    words = describe(annotation)
    too_long = isinstance(value, int) and not _fits_a_word(value) and "an integer" in words
    return words + (", of at most 64 bits" if too_long else "")


def coerce(value: Any, annotation: Any) -> Any:
    """Return a fitting `value` as the annotated type: a list as tuple, an int as float, a string as Path."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return coerce(value, arguments[0])
    if origin in (Union, types.UnionType):
        return coerce(value, next(argument for argument in arguments if fits(value, argument)))
    if origin is tuple:
        return tuple(coerce(item, arguments[0]) for item in value)
    if annotation is float:
        return float(value)
    return expanded(value) if annotation is Path else value


def expanded(path: str | Path) -> Path:
    """Return a path in which `~` and environment variables stand for what they are in a shell.

    A path that exists as it is written is taken so: a folder may be called `$HOME`.

    Variables that are not set stay as they are. So do those that are secrets by their names, since messages show paths.
    """

    def value(found: "re.Match[str]") -> str:
        name = found[1] or found[2]
        return found[0] if names_secret(name) else os.environ.get(name, found[0])

    if _names_a_file(str(path)) and os.path.lexists(path):
        return Path(path)
    return Path(os.path.expanduser(_VARIABLE.sub(value, str(path))))


def check_fields(instance: Any) -> None:
    """Raise ValueError, which names every field of a dataclass whose value does not fit its annotation."""
    problems = [
        f"{name}: found {getattr(instance, name)!r}, expected {expected(getattr(instance, name), parameter.annotation)}"
        for name, parameter in parameters(type(instance)).items()
        if not fits(getattr(instance, name), parameter.annotation)
    ]
    if problems:
        raise ValueError(f"{type(instance).__name__}: " + "; ".join(problems))
