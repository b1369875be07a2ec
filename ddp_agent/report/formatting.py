"""Numbers and names as the tables, the sentences and the figures write them."""

from collections.abc import Sequence
from math import floor, log10

from ddp_agent.report.comparison.intervals import Estimate


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
