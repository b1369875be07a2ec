"""How numbers and names are written, in the tables, the sentences and the figures."""

from collections.abc import Sequence
from math import floor, log10

from ddp_agent.report.interval import Estimate
from ddp_agent.report.result import Line, Result


def compact(value: float) -> str:
    """Three digits, or all before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 - floor(log10(abs(value)))}f}" if abs(value) >= 1 else f"{value:.3g}"


def metric_decimals(result: Result) -> int:
    """As many for all, so that a column can be compared by eye: 0.01234, 0.9312, 24.531, 1312.4."""
    largest = max(abs(line.metric.mean) for line in result.lines)
    if largest == 0:
        return 4
    return min(max((3 if largest < 1 else 4) - floor(log10(largest)), 0), 12)


def count(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def with_interval(estimate: Estimate, decimals: int, sign: str = "") -> str:
    half = estimate.half_width
    value = f"{estimate.mean:{sign}.{decimals}f}".replace("-", "−")
    return value if half is None else f"{value} ± {half:.{decimals}f}"


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def shortened(label: str) -> str:
    """For a figure's legend."""
    return label if len(label) <= 36 else f"{label[:35]}…"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def verdict(line: Line) -> str:
    return f"{line.verdict} ({line.why})" if line.why else line.verdict
