"""Numbers and names as the tables, the sentences and the figures write them, and a number as a user types it."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from math import floor, isfinite, log10, nan

from ddp_agent.report.comparison.intervals import Estimate

_PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3), ("u", 1e-6), ("n", 1e-9))


def compact(value: float) -> str:
    """Format with three digits, or with all digits before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 - floor(log10(abs(value)))}f}" if abs(value) >= 1 else f"{value:.3g}"


def mean_count(value: float) -> str:
    """Format a mean of counts: with one decimal unless it is a whole number."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def with_interval(estimate: Estimate, decimals: int, sign: str = "") -> str:
    """Format as "mean ± half-width". `sign` "+" also marks positive means."""
    half = estimate.half_width
    value = f"{estimate.mean:{sign}.{decimals}f}".replace("-", "−")
    return value if half is None else f"{value} ± {half:.{decimals}f}"


def listed(names: Sequence[str]) -> str:
    """Join names as in a sentence: "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def shortened(label: str) -> str:
    """Shorten a label for a figure."""
    return label if len(label) <= 36 else f"{label[:35]}…"


def counted(count: int, noun: str) -> str:
    """Return the count with its noun, in the plural unless it is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def rate(bits_per_s: float | None) -> str:
    """Return a rate such as "100 Mbit/s". None is an unknown one."""
    return "unknown rate" if bits_per_s is None else _with_prefix(bits_per_s, "bit/s", _PREFIXES[:5])


def duration(seconds: float) -> str:
    """Return a duration such as "20 ms"."""
    return _with_prefix(seconds, "s", _PREFIXES[4:]) if seconds else "0"


def _with_prefix(value: float, unit: str, prefixes: tuple[tuple[str, float], ...]) -> str:
    prefix, size = next((pair for pair in prefixes if value >= 0.9995 * pair[1]), prefixes[-1])
    return f"{value / size:,.3g} {prefix}{unit}"


def finite(text: str) -> float:
    """Parse a finite number. Raises ArgumentTypeError with the found and the expected value."""
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not isfinite(value):
        raise ArgumentTypeError(f"found {text!r}, expected a number")
    return value
