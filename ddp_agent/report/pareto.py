"""Which modes nobody beats in both the metric and what it cost."""

from collections.abc import Sequence
from itertools import pairwise, product

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from ddp_agent.report.palette import INK, Style
from ddp_agent.report.result import Line, Result
from ddp_agent.report.scales import fence, spread_across
from ddp_agent.report.shown import shortened

_NAMED_ALL = 7  # dots
AXES = {"wire_bytes": ("megabytes sent by a rank", 1e6), "train_s": ("seconds of training", 1.0)}


def front(result: Result, cost: str) -> list[Line]:
    """Those for which no other line is at least as good and as cheap, and one of both strictly; cheapest first."""
    known = [line for line in result.lines if line.costs[cost]]
    return sorted(
        (line for line in known if not any(_beats(other, line, cost, result.higher_is_better) for other in known)),
        key=lambda line: _cost(line, cost),
    )


def _beats(other: Line, line: Line, cost: str, higher_is_better: bool) -> bool:
    gain = other.metric.mean - line.metric.mean if higher_is_better else line.metric.mean - other.metric.mean
    saved = _cost(line, cost) - _cost(other, cost)
    return gain >= 0 and saved >= 0 and (gain > 0 or saved > 0)


def _cost(line: Line, cost: str) -> float:
    estimate = line.costs[cost]
    assert estimate is not None
    return estimate.mean


def draw_pareto(panel: Axes, result: Result, cost: str) -> None:
    """A dot is a mean, its bar the 95 % interval. The front is a staircase: between two modes there is nothing."""
    name, _ = AXES[cost]
    best, (across, up) = front(result, cost), zip(*_stairs(result, cost), strict=True)
    panel.step(across, up, where="post", color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for place, line, x, y in _spots(result, cost):
        half = line.metric.half_width if y == line.metric.mean else None
        fill = "full" if line in best else "none"
        panel.errorbar(
            x, y, yerr=half, fmt=Style(place).marker, color=Style(place).colour, fillstyle=fill, markersize=6,
            elinewidth=1, label=shortened(line.label), clip_on=half is not None,
        )  # fmt: skip
    spread_across(panel, [x for _, _, x, _ in _spots(result, cost)], name)
    panel.set_ylim(*_range(result, cost))
    panel.set_ylabel(result.metric_name)


def _spots(result: Result, cost: str) -> list[tuple[int, Line, float, float]]:
    """Each line's place and dot. One that is out of view stands at the edge."""
    low, high = _range(result, cost)
    return [
        (place, line, _cost(line, cost) / AXES[cost][1], min(max(line.metric.mean, low), high))
        for place, line in enumerate(result.lines)
        if line.costs[cost]
    ]


def _range(result: Result, cost: str) -> tuple[float, float]:
    known = [line.metric for line in result.lines if line.costs[cost]]
    values = [value for metric in known for value in (metric.low, metric.mean, metric.high) if value is not None]
    return fence(values, result.higher_is_better)


def unseen(result: Result, cost: str) -> list[Line]:
    """Those too bad to be in view: their dots stand at the edge."""
    return [line for _, line, _, y in _spots(result, cost) if y != line.metric.mean]


def label_pareto(panel: Axes, result: Result, cost: str) -> None:
    """Each name where it covers nothing that is drawn and no other name, as near as there is room.

    Of many, only those of the front and the baseline: the legend has the rest.
    """
    spots, named = _spots(result, cost), [result.baseline, *front(result, cost)]
    taken = _drawn(panel, result, cost)
    for place, line, x, y in spots:
        if line in named or len(spots) <= _NAMED_ALL:
            taken.append(_place(panel, (x, y), shortened(line.label), Style(place).colour, taken))


def _drawn(panel: Axes, result: Result, cost: str) -> list[Bbox]:
    """Where dots, intervals and the front are, in pixels."""

    def box(one: tuple[float, float], other: tuple[float, float], margin: float) -> Bbox:
        (x0, y0), (x1, y1) = panel.transData.transform([one, other])
        return Bbox.from_extents(
            min(x0, x1) - margin, min(y0, y1) - margin, max(x0, x1) + margin, max(y0, y1) + margin
        )  # fmt: skip

    spots, stairs = _spots(result, cost), _stairs(result, cost)
    dots = [box((x, y), (x, y), 5) for _, _, x, y in spots]
    bars = [
        box((x, line.metric.low), (x, line.metric.high), 1)
        for _, line, x, _ in spots
        if line.metric.low is not None and line.metric.high is not None
    ]
    steps = [box(one, (other[0], one[1]), 1) for one, other in pairwise(stairs)]
    rises = [box((other[0], one[1]), other, 1) for one, other in pairwise(stairs)]
    return [*dots, *bars, *steps, *rises]


def _stairs(result: Result, cost: str) -> list[tuple[float, float]]:
    return [(_cost(line, cost) / AXES[cost][1], line.metric.mean) for line in front(result, cost)]


def _place(panel: Axes, spot: tuple[float, float], name: str, colour: str, taken: Sequence[Bbox]) -> Bbox:
    least: tuple[float, Annotation | None, Bbox] = (float("inf"), None, Bbox.null())
    for lift, (side, aligned) in product(
        (0, 9, -9, 18, -18, 27, -27, 40, -40), ((8, "left"), (-8, "right"), (0, "center"))
    ):
        if side == 0 and lift == 0:
            continue
        text = panel.annotate(
            name, spot, (side, lift), textcoords="offset points", ha=aligned, va="center", fontsize=9, color=colour
        )
        box = text.get_window_extent()
        hidden = sum(_overlap(box, other) for other in taken) + 3 * _outside(box, panel.get_window_extent())
        if hidden < least[0]:
            if least[1] is not None:
                least[1].remove()
            least = (hidden, text, box)
        else:
            text.remove()
        if least[0] == 0:
            break
    return least[2]


def _overlap(box: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(box, other)
    return 0.0 if common is None else common.width * common.height


def _outside(box: Bbox, panel: Bbox) -> float:
    return box.width * box.height - _overlap(box, panel)
