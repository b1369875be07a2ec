"""Where the time went: one bar a mode, its parts in the order of a step."""

from matplotlib.axes import Axes

from ddp_agent.report.palette import PARTS
from ddp_agent.report.result import Result
from ddp_agent.report.shown import shortened


def parts_in(result: Result) -> list[str]:
    """Those that any line has."""
    return [part for part in PARTS if any(line.parts_s.get(part) for line in result.lines)]


def draw_split(panel: Axes, result: Result) -> None:
    """The names stand above the bars, so that narrow screens keep their width for the bars."""
    for place, line in enumerate(result.lines):
        left = 0.0
        for part in parts_in(result):
            width = line.parts_s.get(part, 0.0)
            panel.barh(place, width, left=left, height=0.42, color=PARTS[part], label=part if place == 0 else None)
            left += width
        panel.annotate(
            shortened(line.label), (0, place - 0.24), (0, 1.5), textcoords="offset points", va="bottom", fontsize=9
        )
    panel.set_ylim(len(result.lines) - 0.5, -0.75)
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.grid(visible=False, axis="y")
    panel.set_xlabel("seconds of wall-clock, mean over seeds")
