"""Small files with a large shape: a state is read in proportion to its file, or refused."""

import io
import pickle
import re
import signal
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import checkpoint_cases
import fuzzing
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddp_agent.checkpoint import plain_state
from ddp_agent.checkpoint.plain_state import NotPlainError
from ddp_agent.training.state_structure import difference, misshapen_moment

GENEROUS_S = 60
V = torch.zeros(10_000)


@contextmanager
def bounded() -> Iterator[None]:
    """Fail instead of hanging, and instead of taking the machine's memory."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still at work after {GENEROUS_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(GENEROUS_S)
    try:
        with fuzzing.little_memory():
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def with_pickle(content: bytes) -> bytes:
    """A file of torch.save whose pickle is another one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(4)}))) as good, zipfile.ZipFile(buffer, "w") as archive:
        for member in good.infolist():
            archive.writestr(member.filename, content if member.filename.endswith("data.pkl") else good.read(member))
    return buffer.getvalue()


def doubled(kind: Callable[[list[Any]], Any], levels: int = 60) -> Any:
    value = kind([1])
    for _ in range(levels):
        value = kind([value, value])
    return value


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


# A pickle of nothing but instructions: a tuple of the tuple below it, twice, 60 times, as the key of a dict.
HASHED = (
    b"\x80\x02}K\x01\x85" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)) + b"K\x01s."
)


def named(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x02}X\x01\0\0\0a" + f"c{module}\n{name}\n".encode() + arguments + b"Rs."


HUGE = pickle.dumps((10**12,), 2)[2:-1]
BOMBS: dict[str, Callable[[], bytes]] = {
    "lists that share": lambda: saved({"optimizer": doubled(list)}),
    "tuples that share": lambda: saved({"optimizer": doubled(tuple)}),
    "dicts that share": lambda: saved({"optimizer": doubled(lambda both: dict(enumerate(both)))}),
    "a key of tuples that share": lambda: with_pickle(HASHED),
    "deep": lambda: saved({"a": nested(200)}),
    "a circle": lambda: saved({"a": circle()}),
    "one number seen as many": lambda: saved({"a": torch.zeros(1).expand(10**15)}),
    "one storage seen often": lambda: saved({"a": [V] * 1000}),
    "a bytearray": lambda: with_pickle(named("__builtin__", "bytearray", HUGE)),
    "a tensor made by its class": lambda: with_pickle(named("torch", "Tensor", HUGE)),
    "a sparse tensor": lambda: saved({"a": torch.eye(3).to_sparse()}),
    "a set": lambda: saved({"a": {1, 2}}),
    "a size": lambda: saved({"a": torch.Size([1])}),
    "a name twice": lambda: twice(saved({"a": 1})),
    "the old format": lambda: old_format() + saved({"a": 1}),
    "compressed": lambda: compressed(saved({"a": torch.zeros(1000)})),
    "cut off": lambda: saved({"a": torch.zeros(1000)})[:-100],
    "no pickle": lambda: with_pickle(b""),
    "no end": lambda: with_pickle(b"\x80\x02}"),
    "an empty stack": lambda: with_pickle(b"\x80\x02\x86."),
    "a place that is not there": lambda: with_pickle(b"\x80\x02h\x05."),
}


def twice(content: bytes) -> bytes:
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("ARCHIVE/data.pkl", HASHED)
    return buffer.getvalue()


def old_format() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": doubled(list)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def compressed(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as good, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in good.infolist():
            archive.writestr(member.filename, good.read(member), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_with_a_large_shape_is_refused_in_words(name: str) -> None:
    content = BOMBS[name]()
    assert len(content) < 100_000
    with bounded(), pytest.raises(NotPlainError) as refused:
        plain_state.read(io.BytesIO(content))
    assert 10 < len(str(refused.value)) < 300 and str(refused.value).isprintable()


def test_what_is_saved_is_read() -> None:
    module = nn.Sequential(*[nn.Linear(3, 3) for _ in range(50)])
    optimizer = torch.optim.AdamW([{"params": [parameter]} for parameter in module.parameters()])
    module(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    dtypes = [
        torch.bfloat16,
        torch.float16,
        torch.uint16,
        torch.complex64,
        torch.bool,
        torch.uint8,
        torch.float8_e4m3fn,
    ]
    state = {
        "optimizer": optimizer.state_dict(),  # its groups share one pair of betas
        "module": module.state_dict(),
        "parameter": nn.Parameter(torch.randn(3)),
        "dtypes": [torch.ones(3).to(dtype) for dtype in dtypes],
        "numbers": [2**70, -5, float("nan"), 1e308, True, None],
        "texts": {"äöü\udcff": "", 3: ()},
        "ordered": OrderedDict(a=1),
        "views": [V[:5], V[5:], V.view(100, 100)],
    }
    read = plain_state.read(io.BytesIO(saved(state)))
    del state["dtypes"], read["dtypes"][-1]  # torch compares no float8
    assert [tensor.dtype for tensor in read.pop("dtypes")] == dtypes[:-1]
    assert checkpoint_cases.same(read, state)


@fuzzing.tries(0.1)
@given(
    st.lists(st.tuples(st.sampled_from(["list", "tuple", "dict", "key"]), st.integers(), st.integers()), max_size=40)
)
def test_whatever_shares_what_is_read_or_refused(instructions: list[tuple[str, int, int]]) -> None:
    """Each instruction makes a value of two that were made before, so that most values share."""
    made: list[Any] = [1, V[:3]]
    for kind, first, second in instructions:
        one, two = made[first % len(made)], made[second % len(made)]
        made.append({"list": [one, two], "tuple": (one, two), "dict": {1: one, "b": two}, "key": {3: one}}[kind])
    state = {"last": made[-1]}
    with bounded():
        read: list[Any] = []
        said = fuzzing.outcome(lambda: read.append(plain_state.read(io.BytesIO(saved(state)))), (NotPlainError,))
        assert checkpoint_cases.same(read, [state]) if said == "fine" else re.search("values|nested|tensors of", said)


GOOD = {"weights": [torch.zeros(3)], "optimizer": {0: {"exp_avg": torch.ones(3)}}, "step": 5, "betas": (0.9, 0.99)}


def pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


@fuzzing.tries(0.1)
@given(fuzzing.damaged(pickle_of(saved(GOOD))))
def test_a_damaged_pickle_is_read_or_refused_in_words(content: bytes) -> None:
    with bounded():
        fuzzing.outcome(lambda: plain_state.read(io.BytesIO(with_pickle(content))), (NotPlainError,))


EXPECTED = {
    "step": 0, "weights": [torch.zeros(3)], "logged": [0, 0.0], "optimizer": {"state": {}, "groups": [{"lr": 0.1}]},
    "standing": {"best": None}, "name": "a",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, None),
        ({"step": 5, "standing": {"best": 0.5, "of another version": 1}, "further": 3}, None),
        ({"optimizer": {"state": {0: {"momentum": torch.zeros(2)}}, "groups": [{"lr": 1, "new": 2}]}}, None),
        ({"weights": [torch.zeros(4)]}, r"state.weights[0]: found (4,) torch.float32, expected (3,) torch.float32"),
        ({"weights": [torch.zeros(3, dtype=torch.int64)]}, r"state.weights[0]: found (3,) torch.int64"),
        ({"weights": [[1.0]]}, "state.weights[0]: found a list, expected a tensor"),
        ({"weights": {}}, "state.weights: found a dict, expected a list"),
        ({"logged": [0]}, "state.logged: found 1 values, expected 2"),
        ({"optimizer": 3}, "state.optimizer: found a int, expected a dict"),
        ({"optimizer": {"groups": [{"lr": "high"}]}}, "state.optimizer.groups[0].lr: found a str, expected a float"),
        ({"step": 10**400}, "state.step: found an integer of 1329 bits, expected at most 64"),
        ({"name": 3}, "state.name: found a int, expected a str"),
    ],
)
def test_a_state_is_compared_with_the_one_that_it_replaces(changes: dict[str, Any], found: str | None) -> None:
    problem = difference(EXPECTED, EXPECTED | changes, "state")
    assert (problem or "").startswith(found or "") and (problem is None) == (found is None)


def test_a_moment_has_the_shape_of_its_parameter() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert misshapen_moment(optimizer) is None
    optimizer.state[parameter]["exp_avg"] = torch.zeros(2)
    assert misshapen_moment(optimizer) == "optimizer.state[0].exp_avg: found (2,), expected (3,)"
