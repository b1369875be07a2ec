"""Axes on which modes can be told apart that differ by orders of magnitude, or of which one went astray."""

from collections.abc import Iterable, Sequence
from math import floor, log10
from statistics import quantiles

from matplotlib.axes import Axes


def fence(values: Sequence[float], higher_is_better: bool) -> tuple[float, float]:
    """The range to show: all of it, but on the bad side no further than five times the middle third from that third.

    One mode that diverged, or the first steps from nothing, would press the rest into a line.
    """
    shown = list(values)
    if len(values) > 3:
        lower, upper = quantiles(values, n=3, method="inclusive")
        worst = lower - 5 * (upper - lower) if higher_is_better else upper + 5 * (upper - lower)
        shown = [value for value in values if (value >= worst if higher_is_better else value <= worst)]
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low) or 0.02 * abs(high) or 0.02
    return low - margin, high + margin


def spread_across(panel: Axes, values: Iterable[float], name: str, *, linear: bool = False) -> None:
    """From zero; where values differ more than tenfold, logarithmic, with a zero when one is there. Or `linear`."""
    known = list(values)
    positive = [value for value in known if value > 0]
    panel.set_xlabel(name)
    if linear or not positive or max(positive) < 10 * min(positive):
        panel.set_xlim(0, 1.06 * max(positive, default=1.0))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        return
    least, most = min(positive), max(positive)
    panel.set_xscale("symlog", linthresh=least, linscale=0.4)
    panel.set_xlim(-least / 8 if 0 in known else least / 1.3, most * 1.3)
    ticks = [0.0, *_round_values(least, most)] if 0 in known else _round_values(least, most)
    panel.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    panel.minorticks_off()


def _round_values(least: float, most: float) -> list[float]:
    """At most six of 1, 2, 5, 10 …, or else powers of ten."""
    powers = range(floor(log10(least)), floor(log10(most)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in powers for step in steps]
        found = [value for value in found if least <= value <= most]
        if len(found) <= 6:
            break
    return found
