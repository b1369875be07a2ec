"""The test metric against what it cost so far, and the period against steps."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from ddp_agent.report.palette import Style
from ddp_agent.report.result import Line, Point, Result
from ddp_agent.report.scales import fence, spread_across
from ddp_agent.report.shown import shortened

AXES = {
    "step": ("steps", 1.0),
    "train_s": ("seconds of training", 1.0),
    "wire_bytes": ("megabytes sent by a rank", 1e6),
}


def draw_curves(panel: Axes, result: Result, axis: str) -> None:
    """Means over the seeds of the same step, with bands as `band_of` has them."""
    name, unit = AXES[axis]
    for place, line in enumerate(result.lines):
        points = [point for point in line.points if point.metric and _across(point, axis) is not None]
        if points:
            _draw(panel, line, points, axis, unit, Style(place))
    panel.set_ylim(*metric_range(result))
    panel.set_ylabel(result.metric_name)
    known = [_across(point, axis) for line in result.lines for point in line.points]
    spread_across(panel, [value / unit for value in known if value is not None], name, linear=axis != "wire_bytes")


def _draw(panel: Axes, line: Line, points: Sequence[Point], axis: str, unit: float, style: Style) -> None:
    across = [(_across(point, axis) or 0.0) / unit for point in points]
    means = [point.metric.mean for point in points if point.metric]
    marker = style.marker if len(points) <= 12 else None
    panel.plot(
        across, means, style.dashes, color=style.colour, marker=marker, markersize=3, label=shortened(line.label)
    )
    bands = [band for point in points if (band := band_of(point))]
    if len(bands) == len(points):
        low, high = zip(*bands, strict=True)
        panel.fill_between(across, low, high, color=style.colour, alpha=0.13, linewidth=0)


def band_of(point: Point) -> tuple[float, float] | None:
    """The 95 % interval of the mean; with two seeds, whose interval would fill the panel, both of them."""
    if point.metric is None or point.metric.low is None or point.metric.high is None:
        return None
    if point.metric.n == 2:
        return min(point.metric.by_seed.values()), max(point.metric.by_seed.values())
    return point.metric.low, point.metric.high


def metric_range(result: Result) -> tuple[float, float]:
    means = [point.metric.mean for line in result.lines for point in line.points if point.metric]
    means += [line.metric.mean for line in result.lines if not means]
    return fence(means, result.higher_is_better)


def out_of_view(result: Result) -> list[Line]:
    low, high = metric_range(result)
    return [line for line in result.lines if not low <= line.metric.mean <= high]


def _across(point: Point, axis: str) -> float | None:
    return float(point.step) if axis == "step" else point.train_s if axis == "train_s" else point.wire_bytes


def draw_periods(panel: Axes, result: Result) -> None:
    """Of every run whose period changed, since the seeds may differ in when."""
    for place, line in enumerate(result.lines):
        if line.row.period_changes:
            style = Style(place)
            for run in line.row.runs:
                steps, periods = zip(*run.periods, strict=True)
                label = shortened(line.label) if run is line.row.runs[0] else None
                panel.step(steps, periods, style.dashes, where="post", color=style.colour, linewidth=1.1, label=label)
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_xlabel("steps")
    panel.set_ylabel("period H in steps")
