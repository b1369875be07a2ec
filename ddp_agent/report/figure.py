"""The test metric against what it cost: steps, seconds of training, megabytes handed to collectives."""

from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddp_agent.report.runs import Row

# Okabe and Ito's palette, told apart with every common colour blindness. After seven modes the dashes change.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_STYLES = tuple(product(("-", "--", ":"), _COLOURS))
_AXES = (
    ("step", 1.0, "steps"),
    ("train_s", 1.0, "seconds of training"),
    ("payload_bytes", 1e6, "payload in megabytes"),
)
_TYPOGRAPHY: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(rows: Sequence[Row], path: Path) -> None:
    with rc_context(_TYPOGRAPHY):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        panels = figure.subplots(1, len(_AXES), sharey=True)
        for panel, (key, unit, name) in zip(panels, _AXES, strict=True):
            _draw_panel(panel, rows, key, unit)
            panel.set_xlabel(name)
        _spread(panels[-1])
        panels[0].set_ylabel(rows[0].runs[0].metric.replace("_", " "))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)


def _draw_panel(panel: Axes, rows: Sequence[Row], key: str, unit: float) -> None:
    for row, (dash, colour) in zip(rows, cycle(_STYLES), strict=False):
        for run in row.runs:
            points = run.evaluations()
            across = [point[key] / unit for point in points]
            up = [point[run.metric] for point in points]
            label = row.label if run is row.runs[0] else None
            panel.plot(across, up, dash, color=colour, linewidth=0.8, marker=".", markersize=2, label=label)
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def _spread(panel: Axes) -> None:
    """Modes differ by orders of magnitude in what they send, down to nothing: logarithmic, with a zero."""
    lines: list[Any] = panel.get_lines()
    least = min((sent for line in lines for sent in line.get_xdata() if sent > 0), default=1.0)
    panel.set_xscale("symlog", linthresh=least)
    panel.set_xlim(left=-least / 10)
