"""Drawing of the test metric against its costs so far, and of the period against steps."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from ddp_agent.report.comparison.result import Line, Point, Result
from ddp_agent.report.figures.axes import metric_limits, scale_costs
from ddp_agent.report.figures.palette import Style
from ddp_agent.report.formatting import shortened

_AXES = {
    "step": ("steps", 1.0),
    "train_s": ("seconds of training", 1.0),
    "wire_bytes": ("megabytes sent by a rank", 1e6),
}


def draw_curves(axes: Axes, result: Result, axis: str) -> None:
    """Draw means over the seeds at the same step, with a band where there are several seeds."""
    name, unit = _AXES[axis]
    for index, line in enumerate(result.lines):
        points = [point for point in line.points if point.metric and _cost(point, axis) is not None]
        if points:
            _draw(axes, line, points, axis, unit, Style(index))
    axes.set_ylim(*_limits(result))
    axes.set_ylabel(result.metric_name)
    costs = [_cost(point, axis) for line in result.lines for point in line.points]
    scale_costs(axes, [value / unit for value in costs if value is not None], name, linear=axis != "wire_bytes")


def _draw(axes: Axes, line: Line, points: Sequence[Point], axis: str, unit: float, style: Style) -> None:
    costs = [(_cost(point, axis) or 0.0) / unit for point in points]
    means = [point.metric.mean for point in points if point.metric]
    marker = style.marker if len(points) <= 12 else None
    axes.plot(costs, means, style.dashes, color=style.colour, marker=marker, markersize=3, label=shortened(line.label))
    bands = [band for point in points if (band := _band(point))]
    if len(bands) == len(points):
        low, high = zip(*bands, strict=True)
        axes.fill_between(costs, low, high, color=style.colour, alpha=0.13, linewidth=0)


def _band(point: Point) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean. Two seeds' interval would fill the panel, so theirs is the two values."""
    if point.metric is None or point.metric.low is None or point.metric.high is None:
        return None
    if point.metric.n == 2:
        return min(point.metric.by_seed.values()), max(point.metric.by_seed.values())
    return point.metric.low, point.metric.high


def _limits(result: Result) -> tuple[float, float]:
    means = [point.metric.mean for line in result.lines for point in line.points if point.metric]
    means += [line.metric.mean for line in result.lines if not means]
    return metric_limits(means, result.higher_is_better)


def out_of_view(result: Result) -> list[Line]:
    """Return the lines that end outside of the panel."""
    low, high = _limits(result)
    return [line for line in result.lines if not low <= line.metric.mean <= high]


def _cost(point: Point, axis: str) -> float | None:
    return float(point.step) if axis == "step" else point.train_s if axis == "train_s" else point.wire_bytes


def draw_periods(axes: Axes, result: Result) -> None:
    """Draw the period of every run in which it changed. Seeds are apart, since they may change it at other steps."""
    for index, line in enumerate(result.lines):
        if line.row.period_changes:
            style = Style(index)
            for run in line.row.runs:
                steps, periods = zip(*run.periods, strict=True)
                label = shortened(line.label) if run is line.row.runs[0] else None
                axes.step(steps, periods, style.dashes, where="post", color=style.colour, linewidth=1.1, label=label)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("steps")
    axes.set_ylabel("period H in steps")
