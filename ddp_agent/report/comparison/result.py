"""The numbers of a comparison: everything that the tables, the figures and report.json show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Literal

from ddp_agent.report.comparison.intervals import Estimate
from ddp_agent.report.comparison.rows import Row
from ddp_agent.report.runs.run import Run

Verdict = Literal["baseline", "better", "worse", "no difference shown", "no verdict"]

# Reasons for "no verdict" that the answer explains. Any other: all differences are equal.
NO_COMMON_SEED, ONE_SEED = "no seed in common", "one seed"

PARTS = ("data", "compute", "moving bytes", "waiting for stragglers", "communication", "evaluation", "checkpoints")


@dataclass(frozen=True)
class Reached:
    """Costs of the first evaluation at or beyond the target. The means are None unless all seeds reached it."""

    runs: int
    of: int
    step: Estimate | None
    train_s: Estimate | None
    wire_bytes: Estimate | None


@dataclass(frozen=True)
class Point:
    """One evaluation, averaged over the seeds. A value is None where a run did not record it or it was not finite."""

    step: int
    train_s: float | None
    wire_bytes: float | None
    metric: Estimate | None


@dataclass(frozen=True)
class Line:
    """A line of the tables: a row and its numbers. `difference` is to the baseline, paired by seed."""

    row: Row
    metric: Estimate
    difference: Estimate | None
    verdict: Verdict
    reason: str
    costs: Mapping[str, Estimate | None]
    parts_s: Mapping[str, float]
    reached: Reached | None
    points: Sequence[Point]

    @property
    def label(self) -> str:
        """The row's label."""
        return self.row.label

    @property
    def verdict_with_reason(self) -> str:
        """The verdict and, in brackets, its reason, such as "better (n=5 seeds)"."""
        return f"{self.verdict} ({self.reason})" if self.reason else self.verdict


@dataclass(frozen=True)
class Result:
    """A whole comparison. The baseline's line comes first. `failed` are the runs that could not be compared."""

    lines: Sequence[Line]
    failed: Sequence[Run]
    target: float | None

    @property
    def baseline(self) -> Line:
        """The line that the others are compared with."""
        return self.lines[0]

    @property
    def runs(self) -> list[Run]:
        """The compared runs."""
        return [run for line in self.lines for run in line.row.runs]

    @property
    def higher_is_better(self) -> bool:
        """The metric's direction."""
        return self.runs[0].higher_is_better

    @property
    def metric_name(self) -> str:
        """The metric in words, such as "test accuracy"."""
        return self.runs[0].metric.replace("_", " ")

    @property
    def metric_decimals(self) -> int:
        """Decimals of the metric, equal in all lines so that columns align: 0.01234, 0.9312, 24.531, 1312.4."""
        largest = max(abs(line.metric.mean) for line in self.lines)
        if largest == 0:
            return 4
        return min(max((3 if largest < 1 else 4) - floor(log10(largest)), 0), 12)

    @property
    def compared(self) -> list[Line]:
        """The lines whose difference to the baseline has an interval."""
        return [line for line in self.lines if line.difference and line.difference.low is not None]
