"""Rendering of charts: files for documents with all panels in one, and SVG panel by panel for the page."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from math import ceil
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ddp_agent.report.figures.charts import Chart, Panel
from ddp_agent.report.figures.palette import DARK, INK, TYPOGRAPHY

_WIDTH = 4.4  # inches of a panel: its text is legible on a phone of 390 pixels
_LEGEND_ROW = 0.22  # inches of a row of the legend


def files_of(chart: Chart) -> dict[str, bytes]:
    """Return the chart as PNG and SVG, on white, by file name."""
    with _figure(chart.panels, chart.height, legend=True) as figure:
        return {f"{chart.name}.png": _saved(figure, "png", dpi=160), f"{chart.name}.svg": _saved(figure, "svg")}


def inline_svgs(chart: Chart) -> list[str]:
    """Return one SVG element per panel, without legend, in the colours of the page's style sheet."""
    svgs = []
    for index, panel in enumerate(chart.panels):
        with _figure([panel], chart.height) as figure:
            svg = _saved(figure, "svg", transparent=True).decode()
        svgs.append(for_page(svg, prefix=f"{chart.name}-{index}-", description=panel.description))
    return svgs


@contextmanager
def _figure(panels: Sequence[Panel], height: float, *, legend: bool = False) -> Iterator[Figure]:
    with rc_context(TYPOGRAPHY), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
        figure = Figure(figsize=(_WIDTH * len(panels), height), layout="constrained")
        FigureCanvasAgg(figure)  # measures text
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, axes in zip(panels, all_axes, strict=True):
            panel.draw(axes)
        if legend:
            handles, labels = all_axes[0].get_legend_handles_labels()
            columns = min(len(labels), 2 * len(panels))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns)
            # Room for the legend: in a figure of a given height, a long one would leave the panels no height.
            figure.set_figheight(height + _LEGEND_ROW * ceil(len(labels) / columns))
        figure.draw_without_rendering()
        for panel, axes in zip(panels, all_axes, strict=True):
            if panel.label:
                panel.label(axes)
        figure.set_layout_engine("none")  # the layout is done: each file would compute it again
        yield figure


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None, **options)
    return file.getvalue()


def for_page(svg: str, *, prefix: str, description: str) -> str:
    """Turn Matplotlib's SVG into an HTML element with prefixed ids and the colours of the style sheet."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r"#([0-9a-f]{6})\b", lambda colour: f"var(--c-{colour[1]})" if colour[0] in DARK else colour[0], svg)
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    text = escape(description)
    return f'<svg role="img" aria-label="{text}" {box[0] if box else ""}><title>{text}</title>{rest}'
