"""Which mode to use: the fastest of those whose measured quality is good enough, where there is a measurement."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from ddp_agent.plan.measured import Key, Measured
from ddp_agent.plan.predict import Prediction
from ddp_agent.plan.words import counted
from ddp_agent.report.runs.files import number
from ddp_agent.report.runs.run import Run


@dataclass(frozen=True)
class Quality:
    """Of one setting, number of ranks, batch and budget; it does not depend on the link."""

    runs: tuple[Run, ...]

    @property
    def metric(self) -> float:
        return mean(float(run.summary["test_metric"]) for run in self.runs)

    @property
    def seeds(self) -> int:
        return len({run.seed for run in self.runs})

    def steps_to(self, target: float) -> float | None:
        """The mean over its runs; None unless all of them reached it."""
        steps = [_first_step(run, target) for run in self.runs]
        return None if None in steps else mean(step for step in steps if step is not None)

    def reached(self, target: float) -> int:
        return sum(_first_step(run, target) is not None for run in self.runs)


def _first_step(run: Run, target: float) -> int | None:
    for record in run.evaluations:
        value = number(record.get(run.metric))
        if value is not None and (value >= target if run.higher_is_better else value <= target):
            return int(record["step"])
    return None


@dataclass(frozen=True)
class Advice:
    """`mode` is None where runs do not support any, for the reason `why_not`. `fastest` is by time alone, of modes that
    send something. `seconds` are those to the target, or for a sample; `loss` is against the baseline; `seeds` are the
    fewer of the two's.
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
    """What was measured of quality, looked up by what it depends on."""

    def __init__(self, measured: Iterable[Measured]) -> None:
        self._runs: dict[tuple[Key, int, float], dict[float, list[Run]]] = {}
        for each in measured:
            budgets = self._runs.setdefault((each.setting.key, each.ranks, each.batch), {})
            for run in each.runs:
                budgets.setdefault(float(run.summary["samples"]), []).append(run)

    def of(self, prediction: Prediction, samples: float | None = None) -> Quality | None:
        """With the budget asked for, or else the largest. None: no data."""
        if prediction.period is not None:
            return None
        budgets = self._runs.get((prediction.base.setting.key, prediction.ranks, prediction.batch), {})
        runs = budgets.get(max(budgets, default=0.0) if samples is None else samples)
        return Quality(tuple(runs)) if runs else None


def advise(
    predictions: Sequence[Prediction], qualities: Qualities, *, baseline: str, loss: float, target: float | None
) -> Advice:
    """Of predictions for one link and number of ranks."""
    sending = [each for each in predictions if each.wire_bytes] or predictions  # to send nothing is always quicker
    nothing = Advice(predictions[0].ranks, max(sending, key=lambda each: each.samples_per_s))
    first = baseline_of(predictions, baseline)
    theirs = qualities.of(first) if first else None
    if first is None or theirs is None:
        return replace(
            nothing, why_not=f"{baseline}, the baseline, was not run on {counted(nothing.ranks, 'rank')}{_with(first)}"
        )
    samples = float(theirs.runs[0].summary["samples"])
    supported: list[Advice] = []
    for each in predictions:
        quality = qualities.of(each, samples)
        seconds = None if quality is None else seconds_to(target, each, quality)
        if quality is not None and seconds is not None and (lost := _lost(quality, theirs)) <= loss:
            seeds = min(quality.seeds, theirs.seeds)
            supported.append(replace(nothing, mode=each, loss=lost, seeds=seeds, seconds=seconds))
    if not supported:
        return replace(nothing, why_not=f"nothing within a loss of {loss:g} reached {target} in all its runs")
    best = min(supported, key=lambda advice: advice.seconds or 0.0)
    theirs_s = seconds_to(target, first, theirs)
    return replace(best, baseline=first, speedup=theirs_s / best.seconds if theirs_s and best.seconds else None)


def _with(first: Prediction | None) -> str:
    return f" with {first.batch:g} samples a step" if first else ""


def baseline_of(predictions: Sequence[Prediction], name: str) -> Prediction | None:
    """By its label; or by its mode, the reducer that sends most first: of those that lose something none does."""
    measured = [each for each in predictions if each.period is None]
    labelled = [each for each in measured if each.label == name]
    modes = [each for each in measured if each.base.setting.mode == name]
    return next(iter([*labelled, *sorted(modes, key=lambda each: -each.wire_bytes)]), None)


def _lost(quality: Quality, baseline: Quality) -> float:
    """Of the metric, against the baseline; negative: better than it."""
    lost = baseline.metric - quality.metric
    return lost if baseline.runs[0].higher_is_better else -lost


def seconds_to(target: float | None, prediction: Prediction, quality: Quality) -> float | None:
    """None where a run did not reach it. Without a target: for a sample, since budgets are equal."""
    if target is None:
        return 1 / prediction.samples_per_s
    steps = quality.steps_to(target)
    return None if steps is None else steps * prediction.step_s
