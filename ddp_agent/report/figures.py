"""Every figure twice: as files for documents, all panels in one, and panel by panel as SVG inside the page."""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ddp_agent.report.curves import draw_curves, draw_periods, out_of_view
from ddp_agent.report.palette import DARK, INK, TYPOGRAPHY
from ddp_agent.report.pareto import draw_pareto, label_pareto, unseen
from ddp_agent.report.result import Line, Result
from ddp_agent.report.shown import compact, listed
from ddp_agent.report.split import draw_split, parts_in

_WIDTH, _HEIGHT = 4.4, 3.2  # inches of a panel: its text is legible on a phone of 390 pixels


@dataclass(frozen=True)
class Panel:
    """`says` is what the panel shows, for those who cannot see it; `label` comes when all have their final size."""

    says: str
    draw: Callable[[Axes], None]
    label: Callable[[Axes], None] | None = None


@dataclass(frozen=True)
class Chart:
    """`name` is the file's; `shows` says which lines are in it."""

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    height: float = _HEIGHT
    shows: Callable[[Line], bool] = lambda line: True


def charts(result: Result) -> list[Chart]:
    """Those for which there is something to draw."""
    drawn = [chart for chart in (_curves(result), _pareto(result)) if chart.panels]
    if any(map(_period_changes, result.lines)):
        drawn.append(_periods(result))
    if parts_in(result):
        drawn.append(_split(result))
    return drawn


def _curves(result: Result) -> Chart:
    bands = {min(line.metric.n, 3) for line in result.lines}
    said = {3: "the 95 % interval of the mean", 2: "where there are two seeds, both of them"}
    shaded = [said[seeds] for seeds in (3, 2) if seeds in bands]
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
                says=f"{result.metric_name} against {name}",
                draw=partial(draw_pareto, result=result, cost=cost),
                label=partial(label_pareto, result=result, cost=cost),
            )
            for cost, name in known
        ],
    )


def _hidden(what: str, lines: Sequence[Line]) -> str:
    return f" {what}: {listed([f'{line.label} ({compact(line.metric.mean)})' for line in lines])}." if lines else ""


def _periods(result: Result) -> Chart:
    return Chart(
        name="period",
        title="How the period changed",
        caption="H by steps, each run by itself.",
        panels=[Panel("period H by steps", partial(draw_periods, result=result))],
        shows=_period_changes,
    )


def _period_changes(line: Line) -> bool:
    return line.row.period_changes


def _split(result: Result) -> Chart:
    told = any("waiting for stragglers" in line.parts_s for line in result.lines)
    return Chart(
        name="time_split",
        title="Where the time went",
        caption="The slowest rank's wall-clock."
        + ("" if told else " Moving bytes was not told from waiting for stragglers in these runs."),
        panels=[Panel("seconds in each part of a run", partial(draw_split, result=result))],
        height=0.8 + 0.42 * len(result.lines),
    )


def files_of(chart: Chart) -> dict[str, bytes]:
    """PNG and SVG by name, on white."""
    with _drawn(chart.panels, chart.height, legend=True) as figure:
        return {f"{chart.name}.png": _saved(figure, "png", dpi=160), f"{chart.name}.svg": _saved(figure, "svg")}


def inline_svgs(chart: Chart) -> list[str]:
    """One a panel, without a legend, in the page's own ink and colours."""
    found = []
    for place, panel in enumerate(chart.panels):
        with _drawn([panel], chart.height) as figure:
            svg = _saved(figure, "svg", transparent=True).decode()
        found.append(for_page(svg, prefix=f"{chart.name}-{place}-", says=panel.says))
    return found


@contextmanager
def _drawn(panels: Sequence[Panel], height: float, *, legend: bool = False) -> Iterator[Figure]:
    with rc_context(TYPOGRAPHY), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
        figure = Figure(figsize=(_WIDTH * len(panels), height), layout="constrained")
        FigureCanvasAgg(figure)  # it can tell how large a text is
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, each in zip(panels, axes, strict=True):
            panel.draw(each)
        if legend:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * len(panels)))
        figure.draw_without_rendering()
        for panel, each in zip(panels, axes, strict=True):
            if panel.label:
                panel.label(each)
        figure.set_layout_engine("none")  # it has its place: each file would find it again
        yield figure


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None, **options)
    return file.getvalue()


def for_page(svg: str, *, prefix: str, says: str) -> str:
    """Matplotlib's SVG as an element of HTML: ids that no other figure has, colours from the style sheet."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda colour: _page_colour(colour[0]), svg)
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    said = escape(says)
    return f'<svg role="img" aria-label="{said}" {box[0] if box else ""}><title>{said}</title>{rest}'


def _page_colour(colour: str) -> str:
    return "currentColor" if colour == INK else f"var(--c-{colour[1:]})" if colour in DARK else colour
