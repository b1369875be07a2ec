"""Ranges of axes for modes that differ by orders of magnitude, or one of which diverged."""

from collections.abc import Iterable, Sequence
from math import floor, log10
from statistics import quantiles

from matplotlib.axes import Axes


def metric_limits(values: Sequence[float], higher_is_better: bool) -> tuple[float, float]:
    """Return the range to show: on the bad side at most five times the middle third beyond that third.

    One mode that diverged, or the first steps of training, would press the rest into a line.
    """
    shown = list(values)
    if len(values) > 3:
        lower, upper = quantiles(values, n=3, method="inclusive")
        worst = lower - 5 * (upper - lower) if higher_is_better else upper + 5 * (upper - lower)
        shown = [value for value in values if (value >= worst if higher_is_better else value <= worst)]
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low) or 0.02 * abs(high) or 0.02
    return low - margin, high + margin


def scale_costs(axes: Axes, values: Iterable[float], name: str, *, linear: bool = False) -> None:
    """Scale and name the x axis. It starts at 0, and is logarithmic if values differ tenfold, unless `linear`."""
    known = list(values)
    positive = [value for value in known if value > 0]
    axes.set_xlabel(name)
    if linear or not positive or max(positive) < 10 * min(positive):
        axes.set_xlim(0, 1.06 * max(positive, default=1.0))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        return
    least, most = min(positive), max(positive)
    axes.set_xscale("symlog", linthresh=least, linscale=0.4)
    axes.set_xlim(-least / 8 if 0 in known else least / 1.3, most * 1.3)
    ticks = [0.0, *_round_values(least, most)] if 0 in known else _round_values(least, most)
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()


def _round_values(least: float, most: float) -> list[float]:
    """Return at most six of 1, 2, 5, 10 …, or else powers of ten."""
    powers = range(floor(log10(least)), floor(log10(most)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        values = [digit * 10.0**power for power in powers for digit in digits]
        values = [value for value in values if least <= value <= most]
        if len(values) <= 6:
            break
    return values
