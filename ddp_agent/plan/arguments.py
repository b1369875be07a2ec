"""Values of the command line. Each parser raises ArgumentTypeError with the found and the expected value."""

import math
import re
from argparse import ArgumentTypeError
from pathlib import Path

from ddp_agent.report.formatting import finite

_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}  # as in tc
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def rate(text: str) -> float:
    """Parse a rate. Return bits per second."""
    value = _with_unit(text.lower().removesuffix("/s"), _BITS)
    if value is None or value <= 0:
        raise ArgumentTypeError(f"found {text!r}, expected a rate above 0 with its unit, such as 100mbit or 1gbit")
    return value


def duration(text: str) -> float:
    """Parse a duration. Return seconds."""
    value = 0.0 if text == "0" else _with_unit(text, _SECONDS)
    if value is None:
        raise ArgumentTypeError(f"found {text!r}, expected a time with its unit, such as 20ms, 50us or 0")
    return value


def _with_unit(text: str, units: dict[str, float]) -> float | None:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(?:e([+-]?\d{1,2}))?\s*([a-zµ]+)", text.strip())
    if match is None or match[3] not in units:
        return None
    value = float(match[1]) * 10.0 ** int(match[2] or 0) * units[match[3]]
    return value if math.isfinite(value) else None


def counts(text: str) -> list[int]:
    """Parse positive integers. Return each once, in ascending order."""
    words = text.split(",")
    if not all(re.fullmatch(r"\s*0*[1-9]\d{0,8}\s*", word) for word in words):
        raise ArgumentTypeError(f"found {text!r}, expected integers >= 1 with commas between them, such as 4,64,1024")
    return sorted({int(word) for word in words})


def count(text: str) -> int:
    """Parse one positive integer."""
    values = counts(text)
    if len(values) != 1:
        raise ArgumentTypeError(f"found {text!r}, expected one integer >= 1")
    return values[0]


def loss(text: str) -> float:
    """Parse a number that is not negative."""
    value = finite(text)
    if value < 0:
        raise ArgumentTypeError(f"found {text!r}, expected how much of the metric may be lost, a number >= 0")
    return value


def new_file(text: str) -> Path:
    """Parse the path of a file in a directory that exists."""
    path = Path(text).absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentTypeError(f"found {text!r}, expected a file in a directory that exists")
    return path
