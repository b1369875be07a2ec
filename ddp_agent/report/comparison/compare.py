"""Numbers from runs: means over seeds, differences within seeds, and the costs of reaching a target."""

from collections.abc import Callable, Sequence
from functools import partial

from ddp_agent.config.untrusted import number
from ddp_agent.report.comparison.intervals import Estimate, estimate, paired_difference
from ddp_agent.report.comparison.result import NO_COMMON_SEED, ONE_SEED, PARTS, Line, Point, Reached, Result, Verdict
from ddp_agent.report.comparison.rows import Row, choose_baseline
from ddp_agent.report.runs.run import ReportError, Run

# Keys of a summary that are averaged over the seeds of a row, and shares of the training time in percent.
_COSTS = (
    "wire_bytes", "payload_bytes", "link_bytes", "syncs", "collectives", "train_s", "wall_s", "samples_per_s",
    "consensus_distance", "consensus_relative", "change_cosine", "gradient_cosine", "pseudo_gradient_norm",
    "critical_batch_samples", "peak_memory_bytes", "best_metric", "test_loss",
)  # fmt: skip
_SHARES = {"exposed_comm_percent": "exposed_comm_s", "straggler_wait_percent": "straggler_wait_s"}
_BASELINE: tuple[Verdict, str] = ("baseline", "")


def compare(rows: Sequence[Row], failed: Sequence[Run], *, baseline: str | None, target: float | None) -> Result:
    """Compare rows with the baseline. Raises ReportError for an unknown baseline, or a `target` that no run reached."""
    first = choose_baseline(rows, baseline)
    target = _target(rows, target)
    lines = [_line(row, first, target) for row in [first, *(row for row in rows if row is not first)]]
    return Result(lines, failed, target)


def _target(rows: Sequence[Row], wanted: float | None) -> float | None:
    runs = [run for row in rows for run in row.runs]
    if wanted is None:
        targets = {run.value("target") for run in runs}
        return targets.pop() if len(targets) == 1 else None
    if all(run.first_at(wanted) is None for run in runs):
        best = max if runs[0].higher_is_better else min
        values = [(number(record[run.metric]), run.name) for run in runs for record in run.evaluations]
        values += [(run.value("test_metric"), run.name) for run in runs]
        value, name = best((value, name) for value, name in values if value is not None)
        raise ReportError(f"--target {wanted:g}: no run reached it; the best evaluation is {value:g} (run {name})")
    return wanted


def _line(row: Row, first: Row, target: float | None) -> Line:
    metric, baseline = _over_seeds(row, "test_metric"), _over_seeds(first, "test_metric")
    assert metric and baseline, "runs without the metric are not compared"
    difference = None if row is first else paired_difference(metric.by_seed, baseline.by_seed)
    verdict, reason = _BASELINE if row is first else _judge(difference, row.runs[0].higher_is_better)
    return Line(
        row=row,
        metric=metric,
        difference=difference,
        verdict=verdict,
        reason=reason,
        costs={key: _over_seeds(row, key) for key in _COSTS}
        | {name: _mean_of(row, partial(_share, key=key)) for name, key in _SHARES.items()},
        parts_s=_parts(row),
        reached=None if target is None else _reached(row, target),
        points=[_point(row, index) for index in range(len(row.runs[0].evaluations))],
    )


def _judge(difference: Estimate | None, higher_is_better: bool) -> tuple[Verdict, str]:
    if difference is None:
        return "no verdict", NO_COMMON_SEED
    if difference.low is None or difference.high is None:
        return "no verdict", ONE_SEED
    seeds = f"n={difference.n} seeds"
    if difference.low <= 0 <= difference.high:
        return "no difference shown", seeds
    if difference.low == difference.high:
        return "no verdict", f"all {difference.n} differences are equal"
    return ("better" if (difference.mean > 0) == higher_is_better else "worse"), seeds


def _share(run: Run, key: str) -> float | None:
    part, whole = run.value(key), run.value("train_s")
    return None if part is None or not whole else 100 * part / whole


def _over_seeds(row: Row, key: str) -> Estimate | None:
    return _mean_of(row, lambda run: run.value(key))


def _mean_of(row: Row, value_of: Callable[[Run], float | None]) -> Estimate | None:
    """Average a value over the seeds. None unless every run has it: a mean over some seeds would not be the row's."""
    values = {run.seed: value for run in row.runs if (value := value_of(run)) is not None}
    return estimate(values) if len(values) == len(row.runs) else None


def _reached(row: Row, target: float) -> Reached:
    records = {run.seed: record for run in row.runs if (record := run.first_at(target)) is not None}

    def mean_of(key: str) -> Estimate | None:
        return _mean_of(row, lambda run: number(records.get(run.seed, {}).get(key)))

    return Reached(len(records), len(row.runs), mean_of("step"), mean_of("train_s"), mean_of("wire_bytes"))


def _parts(row: Row) -> dict[str, float]:
    """Return mean seconds by PARTS. Runs that did not separate waiting from moving bytes have "communication" alone."""
    keys = ("data_s", "compute_s", "exposed_comm_s", "straggler_wait_s", "eval_s", "checkpoint_s")
    means = [mean.mean if (mean := _over_seeds(row, key)) else None for key in keys]
    data_s, compute_s, exposed_s, waiting_s, eval_s, checkpoint_s = means
    moving_s = None if exposed_s is None or waiting_s is None else max(exposed_s - waiting_s, 0.0)
    communication_s = exposed_s if waiting_s is None else None
    values = (data_s, compute_s, moving_s, waiting_s, communication_s, eval_s, checkpoint_s)
    return {part: value for part, value in zip(PARTS, values, strict=True) if value is not None}


def _point(row: Row, index: int) -> Point:
    """Average the evaluation at `index`. All runs were evaluated after the same steps, so progress is equal."""

    def mean_of(key: str) -> Estimate | None:
        return _mean_of(row, lambda run: number(run.evaluations[index].get(key)))

    train_s, wire_bytes = mean_of("train_s"), mean_of("wire_bytes")
    return Point(
        step=row.runs[0].evaluations[index]["step"],
        train_s=train_s.mean if train_s else None,
        wire_bytes=wire_bytes.mean if wire_bytes else None,
        metric=mean_of(row.runs[0].metric),
    )
