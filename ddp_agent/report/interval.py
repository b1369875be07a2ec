"""A mean over seeds and the interval it stands in, by Student's t."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import cos, isclose, pi, sin, sqrt, tan
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """`low` to `high` is the 95 % interval of the mean. One value has a mean, but no interval."""

    by_seed: Mapping[int, float]
    mean: float
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        return len(self.by_seed)

    @property
    def half_width(self) -> float | None:
        return None if self.high is None or self.low is None else (self.high - self.low) / 2


def estimate(by_seed: Mapping[int, float]) -> Estimate:
    """mean ± t · s / √n, with s the sample standard deviation and t Student's quantile of n − 1 degrees of freedom."""
    values = list(by_seed.values())
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(by_seed, mean, None, None)
    alike = all(isclose(value, mean, rel_tol=1e-12, abs_tol=1e-15) for value in values)
    spread = 0.0 if alike else stdev(values)  # what rounding left of equal values is not a spread
    half = t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * spread / sqrt(len(values))
    return Estimate(by_seed, mean, mean - half, mean + half)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Over the seeds that both have: runs of one seed share weights and order, so what a seed does cancels out."""
    common = {seed: value - theirs[seed] for seed, value in ours.items() if seed in theirs}
    return estimate(common) if common else None


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """Where Student's distribution reaches `probability`, which is above one half: bisected to the last bit."""
    low, high = 0.0, pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, freedom) < 2 * probability - 1 else (low, middle)
    return sqrt(freedom) * tan(low)


def _central(angle: float, freedom: int) -> float:
    """P(|T| < √freedom · tan angle), a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    odd = freedom % 2
    term = total = 0.0 if freedom == 1 else cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cos(angle) ** 2 * (k - 1) / k
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
