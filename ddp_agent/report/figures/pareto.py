"""The Pareto front: modes that no other mode beats in both the metric and its cost."""

from collections.abc import Sequence
from itertools import pairwise, product

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from ddp_agent.report.comparison.result import Line, Result
from ddp_agent.report.figures.axes import metric_limits, scale_costs
from ddp_agent.report.figures.palette import INK, Style
from ddp_agent.report.formatting import shortened

_LABELLED = 7  # with more dots, only those of the front and the baseline get a label
_AXES = {"wire_bytes": ("megabytes sent by a rank", 1e6), "train_s": ("seconds of training", 1.0)}


def front(result: Result, cost: str) -> list[Line]:
    """Return the lines that no other line dominates, the cheapest first."""
    known = [line for line in result.lines if line.costs[cost]]
    return sorted(
        (line for line in known if not any(_dominates(other, line, cost, result.higher_is_better) for other in known)),
        key=lambda line: _cost(line, cost),
    )


def _dominates(other: Line, line: Line, cost: str, higher_is_better: bool) -> bool:
    """Return True if `other` is at least as good and as cheap as `line`, and strictly so in one of the two."""
    gain = other.metric.mean - line.metric.mean if higher_is_better else line.metric.mean - other.metric.mean
    saved = _cost(line, cost) - _cost(other, cost)
    return gain >= 0 and saved >= 0 and (gain > 0 or saved > 0)


def _cost(line: Line, cost: str) -> float:
    estimate = line.costs[cost]
    assert estimate is not None
    return estimate.mean


def draw_pareto(axes: Axes, result: Result, cost: str) -> None:
    """Draw means as dots with their 95 % intervals. The front is a staircase, since no mode lies between two modes."""
    name, _ = _AXES[cost]
    best, (xs, ys) = front(result, cost), zip(*_stairs(result, cost), strict=True)
    axes.step(xs, ys, where="post", color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for index, line, x, y in _dots(result, cost):
        half = line.metric.half_width if y == line.metric.mean else None
        fill = "full" if line in best else "none"
        axes.errorbar(
            x, y, yerr=half, fmt=Style(index).marker, color=Style(index).colour, fillstyle=fill, markersize=6,
            elinewidth=1, label=shortened(line.label), clip_on=half is not None,
        )  # fmt: skip
    scale_costs(axes, [x for _, _, x, _ in _dots(result, cost)], name)
    axes.set_ylim(*_limits(result, cost))
    axes.set_ylabel(result.metric_name)


def _dots(result: Result, cost: str) -> list[tuple[int, Line, float, float]]:
    """Return index, line, x and y of each dot. A dot that is out of view stands at the edge."""
    low, high = _limits(result, cost)
    return [
        (index, line, _cost(line, cost) / _AXES[cost][1], min(max(line.metric.mean, low), high))
        for index, line in enumerate(result.lines)
        if line.costs[cost]
    ]


def _limits(result: Result, cost: str) -> tuple[float, float]:
    known = [line.metric for line in result.lines if line.costs[cost]]
    values = [value for metric in known for value in (metric.low, metric.mean, metric.high) if value is not None]
    return metric_limits(values, result.higher_is_better)


def unseen(result: Result, cost: str) -> list[Line]:
    """Return the lines that are too bad to be in view, so that their dots stand at the edge."""
    return [line for _, line, _, y in _dots(result, cost) if y != line.metric.mean]


def label_pareto(axes: Axes, result: Result, cost: str) -> None:
    """Write each label near its dot, where it covers no drawing and no other label.

    With many dots only the front and the baseline get a label; the legend has the others.
    """
    dots, important = _dots(result, cost), [result.baseline, *front(result, cost)]
    taken = _drawn(axes, result, cost)
    for index, line, x, y in dots:
        if line in important or len(dots) <= _LABELLED:
            taken.append(_write(axes, (x, y), shortened(line.label), Style(index).colour, taken))


def _drawn(axes: Axes, result: Result, cost: str) -> list[Bbox]:
    """Return the boxes of the dots, intervals and steps of the front, in pixels."""

    def box(one: tuple[float, float], other: tuple[float, float], margin: float) -> Bbox:
        (x0, y0), (x1, y1) = axes.transData.transform([one, other])
        return Bbox.from_extents(
            min(x0, x1) - margin, min(y0, y1) - margin, max(x0, x1) + margin, max(y0, y1) + margin
        )  # fmt: skip

    dots, stairs = _dots(result, cost), _stairs(result, cost)
    boxes = [box((x, y), (x, y), 5) for _, _, x, y in dots]
    bars = [
        box((x, line.metric.low), (x, line.metric.high), 1)
        for _, line, x, _ in dots
        if line.metric.low is not None and line.metric.high is not None
    ]
    steps = [box(one, (other[0], one[1]), 1) for one, other in pairwise(stairs)]
    rises = [box((other[0], one[1]), other, 1) for one, other in pairwise(stairs)]
    return [*boxes, *bars, *steps, *rises]


def _stairs(result: Result, cost: str) -> list[tuple[float, float]]:
    return [(_cost(line, cost) / _AXES[cost][1], line.metric.mean) for line in front(result, cost)]


def _write(axes: Axes, dot: tuple[float, float], label: str, colour: str, taken: Sequence[Bbox]) -> Bbox:
    """Write the label where it hides least of `taken`, and return its box."""
    best: tuple[float, Annotation | None, Bbox] = (float("inf"), None, Bbox.null())
    sides = ((8, "left"), (-8, "right"), (0, "center"))
    for lift, (side, aligned) in product((0, 9, -9, 18, -18, 27, -27, 40, -40), sides):
        if side == 0 and lift == 0:
            continue
        text = axes.annotate(
            label, dot, (side, lift), textcoords="offset points", ha=aligned, va="center", fontsize=9, color=colour
        )
        box = text.get_window_extent()
        outside = box.width * box.height - _overlap(box, axes.get_window_extent())
        hidden = sum(_overlap(box, other) for other in taken) + 3 * outside
        if hidden < best[0]:
            if best[1] is not None:
                best[1].remove()
            best = (hidden, text, box)
        else:
            text.remove()
        if best[0] == 0:
            break
    return best[2]


def _overlap(box: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(box, other)
    return 0.0 if common is None else common.width * common.height
