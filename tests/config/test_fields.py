"""Types and ranges in annotations: what fits them, how they are told, what becomes of a value."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from torch import nn

from ddp_agent.config.fields import (
    REQUIRED,
    Decay,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Pattern,
    PositiveFloat,
    PositiveInt,
    Range,
    check_fields,
    coerce,
    describe,
    fits,
    parameters,
)

NAN, INF = math.nan, math.inf
HUGE = 10**400  # an integer that no float can hold
WORD = 2**63  # one that no tensor can
Colour = Literal["red", "blue"]
Short = Annotated[str, Pattern("[a-z]{1,3}", "of one to three letters")]


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (int, [0, -1, WORD - 1, -WORD], [1.0, True, "1", None, NAN, WORD, -WORD - 1, HUGE]),
        (float, [0, 1, -1.5, 1e308], [NAN, INF, -INF, HUGE, -HUGE, True, "1.5", None]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["", "a"], [1, None, b"a"]),
        (Path, ["a", Path("a/b")], ["", 1, None]),
        (PositiveInt, [1, WORD - 1], [0, -1, 1.0, True, WORD]),
        (NonNegativeInt, [0, 1], [-1, 0.0, False]),
        (PositiveFloat, [1e-300, 1, 5.0], [0, 0.0, -0.0, -1, NAN, INF]),
        (NonNegativeFloat, [0, 0.0, 5.0], [-1e-300, NAN, INF]),
        (Fraction, [0, 1, 0.5, 1.0], [-0.1, 1.1, NAN]),
        (Decay, [0, 0.999], [1, 1.0, -0.1, NAN]),
        (Annotated[int, Range(high=3)], [-5, 3], [4]),
        (Short, ["a", "abc"], ["", "abcd", "ab\n", "A", 1]),
        (Colour, ["red"], ["green", "RED", 1, None]),
        (Literal[1], [1], [True, 1.0, "1"]),
        (PositiveInt | None, [None, 1], [0, 1.0, "1"]),
        (tuple[PositiveInt, ...], [[], [1], (1, 2)], [[0], [1, "2"], 1, "12", None]),
        (list[str], [[], ["a"]], ["a", [1], None]),
        (dict[str, int], [{}, {"a": 1}], [[], None]),
        (Mapping[str, int], [{}], [[]]),
        (Any, [None, 1, b"a"], []),
    ],
    ids=str,
)
def test_what_fits_an_annotation(annotation: Any, right: list[Any], wrong: list[Any]) -> None:
    assert [value for value in right if not fits(value, annotation)] == []
    assert [value for value in wrong if fits(value, annotation)] == []


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (PositiveInt, "an integer >= 1"),
        (PositiveFloat, "a finite number > 0"),
        (Fraction, "a finite number >= 0 and <= 1"),
        (Decay, "a finite number >= 0 and < 1"),
        (Annotated[int, Range(high=3)], "an integer <= 3"),
        (Short, "a string of one to three letters"),
        (Colour, "one of red, blue"),
        (bool, "true or false"),
        (Path | None, "a path or null"),
        (PositiveInt | None, "an integer >= 1 or null"),
        (tuple[PositiveInt, ...], "a list, each an integer >= 1"),
        (list[str], "a list, each a string"),
        (dict[str, int], "a mapping"),
        (complex, "complex"),
    ],
    ids=str,
)
def test_an_annotation_in_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, 1.0),
        (1, NonNegativeFloat, 1.0),
        (1, int | float, 1),  # the first that fits
        (0.5, int | float, 0.5),
        (1, PositiveFloat | None, 1.0),
        (None, PositiveFloat | None, None),
        ("a", Path, Path("a")),
        ("a", Path | None, Path("a")),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        (["a"], list[str], ["a"]),
        ("red", Colour, "red"),
        (True, bool, True),
    ],
    ids=str,
)
def test_a_value_becomes_what_the_annotation_says(value: Any, annotation: Any, expected: Any) -> None:
    assert repr(coerce(value, annotation)) == repr(expected)  # == would not tell 1 from 1.0


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("~/data", "/home/ann/data"),
        ("~", "/home/ann"),
        ("$PLACE/x", "/mnt/disk/x"),
        ("a/${PLACE}b", "a//mnt/diskb"),
        ("$HOME", "/home/ann"),
        ("a/~/b~", "a/~/b~"),
        ("$UNSET/x", "$UNSET/x"),
        ("$API_TOKEN/x", "$API_TOKEN/x"),  # messages show paths
    ],
)
def test_a_path_means_what_it_means_in_a_shell(typed: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/ann", "PLACE": "/mnt/disk", "API_TOKEN": "hidden"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)
    assert coerce(typed, Path | None) == Path(found)


@pytest.mark.parametrize("typed", ["a\0b", "\ud800", ""])
def test_a_path_is_one_that_a_file_could_have(typed: str) -> None:
    assert not fits(typed, Path | None) and fits("\udce9", Path | None)  # the latter: the byte e9 in a name


@dataclass(kw_only=True)
class Outer:
    rate: PositiveFloat
    sizes: tuple[PositiveInt, ...] = (1,)
    names: list[str] = field(default_factory=list)
    state: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(kw_only=True)
class Inner(Outer):
    colour: Colour = "red"


class Plain:
    def __init__(self, *, width: PositiveInt, bias: bool = True, **others: Any) -> None: ...


class Inherits(Plain): ...


class NoConstructor(nn.Module): ...


def test_parameters_are_the_keywords_of_a_constructor() -> None:
    of_dataclass = {name: (p.annotation, p.default) for name, p in parameters(Inner).items()}
    assert of_dataclass == {
        "rate": (PositiveFloat, REQUIRED),
        "sizes": (tuple[PositiveInt, ...], (1,)),
        "names": (list[str], []),
        "colour": (Colour, "red"),
    }
    for target in (Plain, Inherits):
        of_class = {name: (p.annotation, p.default) for name, p in parameters(target).items()}
        assert of_class == {"width": (PositiveInt, REQUIRED), "bias": (bool, True)}


def test_a_constructor_that_takes_anything_names_nothing() -> None:
    assert parameters(NoConstructor) == parameters(object) == {}


def test_a_dataclass_names_all_its_wrong_fields_at_once() -> None:
    Inner(rate=1, sizes=(2,))
    with pytest.raises(ValueError, match=r"^Inner: ") as refused:
        Inner(rate=0, sizes=(0,), colour="green")  # type: ignore[arg-type]
    assert str(refused.value).removeprefix("Inner: ").split("; ") == [
        "rate: found 0, expected a finite number > 0",
        "sizes: found (0,), expected a list, each an integer >= 1",
        "colour: found 'green', expected one of red, blue",
    ]
