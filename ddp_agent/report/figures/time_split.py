"""Drawing of the time: one bar per mode, its parts in the order of a step."""

from matplotlib.axes import Axes

from ddp_agent.report.comparison.result import Result
from ddp_agent.report.figures.palette import PARTS
from ddp_agent.report.formatting import shortened


def parts_in(result: Result) -> list[str]:
    """Return the parts that took time in at least one line."""
    return [part for part in PARTS if any(line.parts_s.get(part) for line in result.lines)]


def draw_split(axes: Axes, result: Result) -> None:
    """Draw the bars. Labels stand above their bars, so that bars keep the full width on narrow screens."""
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
