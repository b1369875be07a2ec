"""Small drawings inside the lines of the page: a mode's line style, and a difference with its interval."""

from collections.abc import Sequence
from math import cos, pi, sin

from ddp_agent.report.comparison.result import Line, Result
from ddp_agent.report.figures.palette import MARKERS, Style

_DASHES = {"-": "", "--": "5 2.5", ":": "1.5 2", "-.": "5 2 1.5 2"}
_WIDTH, _HEIGHT = 144.0, 20.0


def swatch(index: int) -> str:
    """Return the line and marker that a mode has in the figures. The label stands beside it."""
    style = Style(index)
    dashes = f' stroke-dasharray="{_DASHES[style.dashes]}"' if _DASHES[style.dashes] else ""
    points = " ".join(f"{14 + 4 * x:.1f},{6 - 4 * y:.1f}" for x, y in _outline(style.marker))
    return (
        f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true" style="color:var(--c-{style.colour[1:]})">'
        f'<path d="M0 6H28" stroke="currentColor" stroke-width="2"{dashes}/>'
        f'<polygon points="{points}" fill="currentColor"/></svg>'
    )


def _outline(marker: str) -> Sequence[tuple[float, float]]:
    """Return the corners of a marker within a circle of radius 1, as Matplotlib draws it."""
    if marker in "PX":
        arm = 0.36
        plus = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
        plus += [(-x, -y) for x, y in plus]
        return plus if marker == "P" else [((x - y) * 0.75, (x + y) * 0.75) for x, y in plus]
    corners, turn = {"o": (24, 0.0), "s": (4, 0.125), "^": (3, 0.25), "D": (4, 0.0), "v": (3, 0.75), "p": (5, 0.25)}[
        marker
    ]
    return [(cos(2 * pi * (turn + k / corners)), sin(2 * pi * (turn + k / corners))) for k in range(corners)]


assert set(MARKERS) == set("osDvPXp^"), "each marker has an outline"


def difference_scale(result: Result) -> float:
    """Return the metric difference at the edge of the drawing.

    Every interval fits, unless it reaches more than twenty times as far as the smallest. Without intervals: 0.
    """
    ends = sorted(
        max(abs(line.difference.low or 0.0), abs(line.difference.high or 0.0))
        for line in result.compared
        if line.difference
    )
    return min(ends[-1], 20 * ends[0]) * 1.08 or 1.0 if ends else 0.0


def difference(line: Line, scale: float, *, higher_is_better: bool) -> str:
    """Return the drawing of a difference, with better on the right. An end that is out of view becomes an arrow."""
    if line.difference is None or line.difference.low is None or line.difference.high is None:
        return ""
    direction = 1 if higher_is_better else -1
    low, mean, high = (
        _WIDTH / 2 * (1 + direction * value / scale)
        for value in (line.difference.low, line.difference.mean, line.difference.high)
    )
    left, right = sorted((low, high))
    kind = line.verdict if line.verdict in ("better", "worse") else "even"
    return (
        f'<svg class="interval" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" aria-hidden="true">'
        f'<path class="axis" d="M{_WIDTH / 2:g} 0V{_HEIGHT:g}" stroke="currentColor" stroke-dasharray="2 2"/>'
        f'<g class="{kind}" stroke="currentColor" fill="currentColor" stroke-width="1.5">'
        f'<path d="M{_inside(left):.1f} 10H{_inside(right):.1f}{_cap(left, -1)}{_cap(right, 1)}" fill="none"/>'
        + (f'<circle cx="{mean:.1f}" cy="10" r="3.2"/>' if _inside(mean) == mean else "")
        + "</g></svg>"
    )


def _inside(x: float) -> float:
    return min(max(x, 2.0), _WIDTH - 2.0)


def _cap(x: float, side: int) -> str:
    """Return a bar at the end of the interval, or an arrow at the edge of the drawing."""
    end = _inside(x)
    if end == x:
        return f"M{end:.1f} 6.5V13.5"
    return f"M{end - 5 * side:.1f} 6L{end:.1f} 10L{end - 5 * side:.1f} 14"
