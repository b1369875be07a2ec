"""The number of examples that hypothesis tries, and the damage that it does to files.

CI tries 300 cases, the same ones each time. As many others as you like:

    DDP_AGENT_FUZZ_CASES=12000 pytest --hypothesis-seed=1 \\
        tests/config/test_fuzz_configs.py tests/data/test_fuzz_readers.py tests/checkpoint/test_plain_state.py
"""

import contextlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

WANTED = os.environ.get("DDP_AGENT_FUZZ_CASES")
CASES = int(WANTED or 300)
SPARE_BYTES = 1 << 30


def tries(share: float) -> Callable[[Any], Any]:
    """Return settings for this share of all examples. Nothing is kept between sessions."""
    return settings(
        max_examples=max(1, round(CASES * share)),
        derandomize=WANTED is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Limit memory, so that a request for much more than there is now fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(action: Callable[[], object], may_raise: tuple[type[Exception], ...]) -> str:
    """Return the text of a refusal, or "fine". Fails for an empty text, or one about memory."""
    try:
        action()
    except may_raise as refusal:
        text = str(refusal)
        if not text.strip() or "allocate" in text:
            raise AssertionError(f"no clear message: {text!r}") from refusal
        return text
    return "fine"


# Values

INTEGERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31 - 1, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), -(10**30), 10**400]),
)
NUMBERS = st.one_of(INTEGERS, st.floats(), st.sampled_from([0.5, 0.9, 1.0, 1e-300, 1e300, 5e-324]))
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "null", "../../x", "/etc/passwd", "a\0b", "\ud800", "1e400", "os:abort", "MLP", "resnet18"]),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES: st.SearchStrategy[Any] = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)

# Bytes

PAYLOADS = [
    *(b"", b"\0", b"\xff", b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 600),
    *(b"null", b"NaN", b"-1", b"1e999", b'"', b"{", b"}", b"[", b"[" * 3000, b",", b"\n", b"\r\n", b"\xed\xa0\x80"),
    *(
        b"9" * 30,
        b"9" * 5000,
        b"../",
        b"/",
        b"-",
        b".",
        b"true",
        b'""',
        b"\xef\xbb\xbf",
        b"*a",
        b"&a ",
        b"_target_: x\n",
    ),
]


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Change `good` one to three times: flipped bits, cuts, repetitions, and bytes with a meaning in some format."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 1, 2, 4, 8, 40, 1 << 30])))
        match draw(st.sampled_from(["flip", "flip", "replace", "replace", "cut", "repeat", "random"])):
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "replace":
                data[start:end] = draw(st.sampled_from(PAYLOADS))
            case "cut":
                del data[start:end]
            case "repeat":
                data[start:start] = data[start:end]
            case _:
                data[start:end] = draw(st.binary(max_size=16))
    return bytes(data)


@st.composite
def damaged_json(draw: st.DrawFn, good: bytes) -> bytes:
    """Damage bytes, or replace, remove or add one or two values somewhere in the tree."""
    if draw(st.booleans()):
        return draw(damaged(good))
    tree = json.loads(good)
    for _ in range(draw(st.integers(1, 2))):
        tree = _changed(draw, tree)
    return json.dumps(tree).encode()


def _changed(draw: st.DrawFn, tree: Any) -> Any:
    if not tree or not isinstance(tree, dict | list) or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    key: Any = draw(st.sampled_from(sorted(copy) if isinstance(copy, dict) else range(len(copy))))
    match draw(st.sampled_from(["change", "change", "change", "remove", "add"])):
        case "change":
            copy[key] = _changed(draw, copy[key])
        case "remove":
            del copy[key]
        case _ if isinstance(copy, dict):
            copy[draw(TEXTS)] = draw(VALUES)
        case _:
            copy.append(draw(VALUES))
    return copy


@st.composite
def damaged_lines(draw: st.DrawFn, good: bytes) -> bytes:
    """Damage one line of JSON."""
    lines = good.splitlines(keepends=True)
    index = draw(st.integers(0, len(lines) - 1))
    lines[index] = draw(damaged_json(lines[index])) + b"\n"
    return b"".join(lines)
