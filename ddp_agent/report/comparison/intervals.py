"""Means over seeds with their 95 % intervals, by Student's t distribution."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import cos, isclose, pi, sin, sqrt, tan
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval, `low` to `high`. One value alone has no interval."""

    by_seed: Mapping[int, float]
    mean: float
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.by_seed)

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None or self.low is None else (self.high - self.low) / 2


def estimate(by_seed: Mapping[int, float]) -> Estimate:
    """Return mean ± t · s / √n with the sample standard deviation s and Student's t for n − 1 degrees of freedom."""
    values = list(by_seed.values())
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(by_seed, mean, None, None)
    equal = all(isclose(value, mean, rel_tol=1e-12, abs_tol=1e-15) for value in values)
    spread = 0.0 if equal else stdev(values)  # rounding errors of equal values are not a spread
    half = t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * spread / sqrt(len(values))
    return Estimate(by_seed, mean, mean - half, mean + half)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Return the mean difference over the common seeds, or None if there are none.

    Runs of one seed share initial weights and sample order, so the effect of the seed cancels in a pair.
    """
    common = {seed: value - theirs[seed] for seed, value in ours.items() if seed in theirs}
    return estimate(common) if common else None


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's distribution for a probability above 1/2, bisected to the last bit."""
    low, high = 0.0, pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, freedom) < 2 * probability - 1 else (low, middle)
    return sqrt(freedom) * tan(low)


def _central(angle: float, freedom: int) -> float:
    """Return P(|T| < √freedom · tan angle), a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    odd = freedom % 2
    term = total = 0.0 if freedom == 1 else cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cos(angle) ** 2 * (k - 1) / k
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
