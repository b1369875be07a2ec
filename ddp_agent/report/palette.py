"""Colours that are legible on white; the page has a counterpart of each for dark screens."""

from dataclasses import dataclass
from typing import Any

# Neighbours in the list differ in lightness too, and each has a marker of its own: colour is never alone.
SERIES = ("#1f5fbf", "#c2570c", "#1a7f4b", "#a83288", "#0e7490", "#8a6100", "#6b4bd6", "#5b6472")
SERIES_DARK = ("#7db1ff", "#ff9f5f", "#62d394", "#f191d3", "#55cfe0", "#dcb650", "#b9a5ff", "#b3bcc9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", "--", ":", "-.")
# By the names of result.PARTS.
PARTS = {
    "data": "#8a6100",
    "compute": "#8aa9d6",
    "moving bytes": "#c2570c",
    "waiting for stragglers": "#a83288",
    "communication": "#0e7490",
    "evaluation": "#9fb8a8",
    "checkpoints": "#5b6472",
}
INK, GRID = "#1b1f24", "#dfe3e8"
DARK = dict(zip(SERIES, SERIES_DARK, strict=True)) | {"#8aa9d6": "#4a6fa8", "#9fb8a8": "#587563", GRID: "#2c323a"}

TYPOGRAPHY: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # names of runs are not formulas
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "ddp_agent.report",  # the same figure is the same file
}


@dataclass(frozen=True)
class Style:
    """How the line at `place` in the tables looks in every figure."""

    place: int

    @property
    def colour(self) -> str:
        return SERIES[self.place % len(SERIES)]

    @property
    def marker(self) -> str:
        return MARKERS[(self.place + self.place // len(SERIES)) % len(MARKERS)]

    @property
    def dashes(self) -> str:
        return DASHES[self.place // len(SERIES) % len(DASHES)]
