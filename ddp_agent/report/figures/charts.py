"""The charts of a report: curves, Pareto front, changes of the period, and the parts of the time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes

from ddp_agent.report.comparison.result import Line, Result
from ddp_agent.report.figures.curves import draw_curves, draw_periods, out_of_view
from ddp_agent.report.figures.palette import PARTS
from ddp_agent.report.figures.pareto import draw_pareto, label_pareto, unseen
from ddp_agent.report.formatting import compact, listed, shortened


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `description` is for readers who cannot see it. `label` is called after the layout is final."""

    description: str
    draw: Callable[[Axes], None]
    label: Callable[[Axes], None] | None = None


@dataclass(frozen=True)
class Chart:
    """One figure. `name` is its file's name, `height` is in inches; `shows` returns True for the lines drawn in it."""

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    height: float = 3.2
    shows: Callable[[Line], bool] = lambda line: True


def charts(result: Result) -> list[Chart]:
    """Return the charts for which there is something to draw."""
    periods = Chart(
        name="period",
        title="How the period changed",
        caption="H by steps, each run by itself.",
        panels=[Panel("period H by steps", partial(draw_periods, result=result))],
        shows=lambda line: line.row.period_changes,
    )
    drawn = [chart for chart in (_curves(result), _pareto(result)) if chart.panels]
    drawn += [periods] if any(map(periods.shows, result.lines)) else []
    return [*drawn, _time_split(result)] if parts_in(result) else drawn


def _curves(result: Result) -> Chart:
    seeds = {min(line.metric.n, 3) for line in result.lines}
    bands = {3: "the 95 % interval of the mean", 2: "where there are two seeds, both of them"}
    shaded = [bands[count] for count in (3, 2) if count in seeds]
    caption = "Means over the seeds at the same step." + (f" Shaded: {'; '.join(shaded)}." if shaded else "")
    axes = ("step", "train_s", "wire_bytes")
    return Chart(
        name="curves",
        title=f"{result.metric_name.capitalize()} against what it cost",
        caption=caption + _hidden("Out of view at the end", out_of_view(result)),
        panels=[
            Panel(f"{result.metric_name} by {name}", partial(draw_curves, result=result, axis=axis))
            for axis, name in zip(axes, ("steps", "seconds of training", "megabytes sent"), strict=True)
            if axis == "step" or any(getattr(point, axis) is not None for line in result.lines for point in line.points)
        ],
    )


def _pareto(result: Result) -> Chart:
    known = [
        (cost, name)
        for cost, name in (("wire_bytes", "megabytes sent"), ("train_s", "seconds of training"))
        if any(line.costs[cost] for line in result.lines)
    ]
    return Chart(
        name="pareto",
        title="Pareto front: what no other mode beats in both",
        caption="Filled: no other mode is as good and as cheap; the dashed line joins them. "
        "A difference between neighbours may be chance: the table has the verdicts."
        + _hidden("At the edge, since out of view", unseen(result, known[0][0]) if known else []),
        panels=[
            Panel(
                description=f"{result.metric_name} against {name}",
                draw=partial(draw_pareto, result=result, cost=cost),
                label=partial(label_pareto, result=result, cost=cost),
            )
            for cost, name in known
        ],
    )


def _hidden(where: str, lines: Sequence[Line]) -> str:
    return f" {where}: {listed([f'{line.label} ({compact(line.metric.mean)})' for line in lines])}." if lines else ""


def _time_split(result: Result) -> Chart:
    separated = any("waiting for stragglers" in line.parts_s for line in result.lines)
    return Chart(
        name="time_split",
        title="Where the time went",
        caption="The slowest rank's wall-clock."
        + ("" if separated else " These runs did not separate moving bytes from waiting for stragglers."),
        panels=[Panel("seconds in each part of a run", partial(_draw_split, result=result))],
        height=0.8 + 0.42 * len(result.lines),
    )


def parts_in(result: Result) -> list[str]:
    """Return the parts that took time in at least one line."""
    return [part for part in PARTS if any(line.parts_s.get(part) for line in result.lines)]


def _draw_split(axes: Axes, result: Result) -> None:
    """Draw a bar per mode. Labels stand above their bars, so that bars keep the full width on narrow screens."""
    for index, line in enumerate(result.lines):
        left = 0.0
        for part in parts_in(result):
            width = line.parts_s.get(part, 0.0)
            axes.barh(index, width, left=left, height=0.42, color=PARTS[part], label=part if index == 0 else None)
            left += width
        axes.annotate(
            shortened(line.label), (0, index - 0.24), (0, 1.5), textcoords="offset points", va="bottom", fontsize=9
        )
    axes.set_ylim(len(result.lines) - 0.5, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds of wall-clock, mean over seeds")
