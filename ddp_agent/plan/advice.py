"""Recommendation of a setting: the fastest of those whose measured quality is good enough."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from ddp_agent.plan.measured import Key, Measured
from ddp_agent.plan.predict import Prediction
from ddp_agent.report.formatting import counted
from ddp_agent.report.runs.run import Run


@dataclass(frozen=True)
class Quality:
    """The measured quality of one setting with one number of ranks, batch and budget. The link does not change it."""

    runs: tuple[Run, ...]

    @property
    def metric(self) -> float:
        """The mean of the final test metric."""
        return mean(float(run.summary["test_metric"]) for run in self.runs)

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len({run.seed for run in self.runs})


@dataclass(frozen=True)
class Advice:
    """A recommendation for one number of ranks.

    `mode` is None where runs do not support one; `why_not` has the reason. `fastest` is the fastest setting that sends
    something, whatever its quality. `seconds` are those to the target or, without a target, per sample. `loss` is the
    loss of the metric against the baseline. `seeds` is the smaller of the two settings' numbers of seeds.
    """

    ranks: int
    fastest: Prediction
    mode: Prediction | None = None
    baseline: Prediction | None = None
    seconds: float | None = None
    speedup: float | None = None
    loss: float | None = None
    seeds: int = 0
    why_not: str = ""


class Qualities:
    """All measured qualities."""

    def __init__(self, measured: Iterable[Measured]) -> None:
        self._runs: dict[tuple[Key, int, float], dict[float, list[Run]]] = {}
        for each in measured:
            budgets = self._runs.setdefault((each.setting.key, each.ranks, each.batch), {})
            for run in each.runs:
                budgets.setdefault(float(run.summary["samples"]), []).append(run)

    def of(self, prediction: Prediction, samples: float | None = None) -> Quality | None:
        """Return the quality with a budget of `samples`, by default the largest, or None if it was not measured."""
        if prediction.period is not None:
            return None
        budgets = self._runs.get((prediction.base.setting.key, prediction.ranks, prediction.batch), {})
        runs = budgets.get(max(budgets, default=0.0) if samples is None else samples)
        return Quality(tuple(runs)) if runs else None


def advise(
    predictions: Sequence[Prediction], qualities: Qualities, *, baseline: str, loss: float, target: float | None
) -> Advice:
    """Recommend one of `predictions`, which are for one link and number of ranks.

    Supported is a setting with the baseline's budget that loses at most `loss` of the metric and, if there is a
    `target`, reached it in all its runs.
    """
    sending = [each for each in predictions if each.wire_bytes] or predictions  # to send nothing is always faster
    nothing = Advice(predictions[0].ranks, max(sending, key=lambda each: each.samples_per_s))
    first = baseline_of(predictions, baseline)
    expected = qualities.of(first) if first else None
    if first is None or expected is None:
        batch = f" with {first.batch:g} samples per step" if first else ""
        ranks = counted(nothing.ranks, "rank")
        return replace(nothing, why_not=f"{baseline}, the baseline, was not run on {ranks}{batch}")
    samples = float(expected.runs[0].summary["samples"])
    supported: list[Advice] = []
    for each in predictions:
        quality = qualities.of(each, samples)
        seconds = None if quality is None else seconds_to(target, each, quality)
        if quality is not None and seconds is not None and (lost := _loss(quality, expected)) <= loss:
            seeds = min(quality.seeds, expected.seeds)
            supported.append(replace(nothing, mode=each, loss=lost, seeds=seeds, seconds=seconds))
    if not supported:
        return replace(nothing, why_not=f"nothing within a loss of {loss:g} reached {target} in all its runs")
    best = min(supported, key=lambda advice: advice.seconds or 0.0)
    baseline_s = seconds_to(target, first, expected)
    return replace(best, baseline=first, speedup=baseline_s / best.seconds if baseline_s and best.seconds else None)


def baseline_of(predictions: Sequence[Prediction], name: str) -> Prediction | None:
    """Return the prediction with this label or else of this mode: of several, the one that sends most loses least."""
    named = [each for each in predictions if each.period is None and name in (each.label, each.base.setting.mode)]
    return max(named, key=lambda each: (each.label == name, each.wire_bytes), default=None)


def _loss(quality: Quality, baseline: Quality) -> float:
    """Return how much worse the metric is than the baseline's. A negative loss is a gain."""
    lost = baseline.metric - quality.metric
    return lost if baseline.runs[0].higher_is_better else -lost


def seconds_to(target: float | None, prediction: Prediction, quality: Quality) -> float | None:
    """Return the seconds to the target, or None if a run missed it. Without a target: the seconds per sample."""
    if target is None:
        return 1 / prediction.samples_per_s  # budgets are equal
    records = [run.first_at(target) for run in quality.runs]
    steps = [int(record["step"]) for record in records if record is not None]
    return mean(steps) * prediction.step_s if len(steps) == len(records) else None
