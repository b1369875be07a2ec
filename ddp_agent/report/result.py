"""What a comparison found, in numbers: everything that the table, the figures and report.json show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ddp_agent.report.interval import Estimate
from ddp_agent.report.rows import Row
from ddp_agent.report.runs import Run

Verdict = Literal["baseline", "better", "worse", "no difference shown", "no verdict"]

PARTS = ("data", "compute", "moving bytes", "waiting for stragglers", "communication", "evaluation", "checkpoints")


@dataclass(frozen=True)
class Reached:
    """The first evaluation at or beyond the target. The means are those of all seeds, or None when one missed it."""

    runs: int
    of: int
    step: Estimate | None
    train_s: Estimate | None
    wire_bytes: Estimate | None


@dataclass(frozen=True)
class Point:
    """One evaluation over the seeds. An axis that a run did not record is None, as is a metric that was not finite."""

    step: int
    train_s: float | None
    wire_bytes: float | None
    metric: Estimate | None


@dataclass(frozen=True)
class Line:
    """A row with its numbers. `difference` is to the baseline, paired by seed."""

    row: Row
    metric: Estimate
    difference: Estimate | None
    verdict: Verdict
    why: str
    costs: Mapping[str, Estimate | None]
    parts_s: Mapping[str, float]
    reached: Reached | None
    points: Sequence[Point]

    @property
    def label(self) -> str:
        return self.row.label


@dataclass(frozen=True)
class Result:
    """The baseline's line comes first. `failed` are the runs that could not be compared."""

    lines: Sequence[Line]
    failed: Sequence[Run]
    target: float | None

    @property
    def baseline(self) -> Line:
        return self.lines[0]

    @property
    def runs(self) -> list[Run]:
        return [run for line in self.lines for run in line.row.runs]

    @property
    def higher_is_better(self) -> bool:
        return self.runs[0].higher_is_better

    @property
    def metric_name(self) -> str:
        return self.runs[0].metric.replace("_", " ")

    @property
    def compared(self) -> list[Line]:
        """The lines that have an interval for their difference to the baseline."""
        return [line for line in self.lines if line.difference and line.difference.low is not None]
