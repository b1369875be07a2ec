"""Recommendation of a setting: the fastest of those whose measured quality is good enough."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from ddp_agent.plan.measured import Key, Measured
from ddp_agent.plan.predict import Prediction
from ddp_agent.report.runs.run import Run


@dataclass(frozen=True)
class Quality:
    """The measured quality of one setting with one number of ranks, batch and budget. The link does not change it."""

    runs: tuple[Run, ...]
    ranks: int

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
    loss of the metric against the baseline. `seeds` is the smaller of the two settings' numbers of seeds. `rests_on` is
    the number of ranks where the quality was measured: these, or others if it was not measured here. `doubted`: the
    model predicts nothing here.
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
    quality: Quality | None = None
    baseline_quality: Quality | None = None
    doubted: bool = False

    @property
    def rests_on(self) -> int | None:
        """The number of ranks on which the quality was measured."""
        return self.quality.ranks if self.quality else None


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
        return self._at(prediction, prediction.ranks, prediction.batch, samples)

    def nearest(self, prediction: Prediction, samples: float | None = None) -> Quality | None:
        """Return the quality there, or else where the setting was measured that the prediction starts from."""
        base = prediction.base
        return self.of(prediction, samples) or self._at(prediction, base.ranks, base.batch, samples)

    def _at(self, prediction: Prediction, ranks: int, batch: float, samples: float | None) -> Quality | None:
        if prediction.period is not None:
            return None
        budgets = self._runs.get((prediction.base.setting.key, ranks, batch), {})
        runs = budgets.get(max(budgets, default=0.0) if samples is None else samples)
        return Quality(tuple(runs), ranks) if runs else None


def advise(
    predictions: Sequence[Prediction],
    qualities: Qualities,
    *,
    baseline: str,
    loss: float,
    target: float | None,
    doubtful: Callable[[Prediction], float | None] = lambda prediction: None,
) -> Advice:
    """Recommend one of `predictions`, which are for one link and number of ranks.

    Supported is a setting with the baseline's budget that loses at most `loss` of the metric and, if there is a
    `target`, reached it in all its runs. Where the baseline was not run on so many ranks, quality is compared where
    both were run. `doubtful` returns the error for which a prediction is not believed, or None.
    """
    believed = [each for each in predictions if doubtful(each) is None]
    sending = [each for each in believed if each.wire_bytes] or believed or predictions  # to send nothing is faster
    nothing = Advice(predictions[0].ranks, max(sending, key=lambda each: each.samples_per_s), doubted=not believed)
    first = baseline_of(predictions, baseline)
    expected = qualities.nearest(first) if first else None
    if not believed:
        errors = sorted(abs(error) for each in predictions if (error := doubtful(each)) is not None)
        why_not = (
            f"the model's own check is off by {errors[0]:.0%} to {errors[-1]:.0%}, so nothing is predicted elsewhere"
        )
        return replace(nothing, why_not=f"{why_not}; run the sweep there, or on a machine without other work")
    if first is None or expected is None:
        return replace(nothing, why_not=f"{baseline}, the baseline, is not among the runs; --baseline names another")
    here = expected.ranks == first.ranks
    supported: list[Advice] = []
    for each in believed:
        quality = (qualities.of if here else qualities.nearest)(each, float(expected.runs[0].summary["samples"]))
        seconds = None if quality is None else seconds_to(target if here else None, each, quality)
        reached = quality is not None and (target is None or seconds_to(target, each, quality) is not None)
        if quality is None or seconds is None or not reached or quality.ranks != expected.ranks:
            continue
        if (lost := _loss(quality, expected)) <= loss:
            seeds = min(quality.seeds, expected.seeds)
            supported.append(replace(nothing, mode=each, loss=lost, seeds=seeds, seconds=seconds, quality=quality))
    if not supported:
        return replace(nothing, why_not=f"nothing within a loss of {loss:g} reached {target} in all its runs")
    best = min(supported, key=lambda advice: advice.seconds or 0.0)
    baseline_s = seconds_to(target if here else None, first, expected) if doubtful(first) is None else None
    speedup = baseline_s / best.seconds if baseline_s and best.seconds else None
    return replace(best, baseline=first, baseline_quality=expected, speedup=speedup)


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
