"""Colours, markers and typography of the figures. Each colour has a counterpart for dark screens."""

from dataclasses import dataclass
from typing import Any

# Neighbours differ in lightness too, and each colour has a marker of its own, for readers who cannot tell colours.
SERIES = ("#1f5fbf", "#c2570c", "#1a7f4b", "#a83288", "#0e7490", "#8a6100", "#6b4bd6", "#5b6472")
SERIES_DARK = ("#7db1ff", "#ff9f5f", "#62d394", "#f191d3", "#55cfe0", "#dcb650", "#b9a5ff", "#b3bcc9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", "--", ":", "-.")
# The keys are those of result.PARTS.
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
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.7),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "font.size": 10,
    "text.parse_math": False,  # a $ in a run's name does not start a formula
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "ddp_agent.report",  # equal figures are equal files
}


@dataclass(frozen=True)
class Style:
    """The style in all figures of the line with this `index` in the tables."""

    index: int

    @property
    def colour(self) -> str:
        """The colour on white, such as #1f5fbf."""
        return SERIES[self.index % len(SERIES)]

    @property
    def marker(self) -> str:
        """The marker, as Matplotlib names it."""
        return MARKERS[(self.index + self.index // len(SERIES)) % len(MARKERS)]

    @property
    def dashes(self) -> str:
        """The line style, as Matplotlib names it."""
        return DASHES[self.index // len(SERIES) % len(DASHES)]
