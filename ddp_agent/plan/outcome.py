"""A whole plan: predictions and advice for each number of ranks."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ddp_agent.plan.advice import Advice, Qualities, advise
from ddp_agent.plan.fit import Link
from ddp_agent.plan.measured import Key, Measured
from ddp_agent.plan.predict import Model, Prediction, nearest
from ddp_agent.plan.validation import Check, doubtful
from ddp_agent.report.formatting import rate
from ddp_agent.report.runs.run import ReportError

BASELINE = "allreduce"


@dataclass(frozen=True)
class Question:
    """The user's question. A `target` of None is the runs' own target, if they agree in one."""

    link: Link
    ranks: Sequence[int]
    periods: Sequence[int]
    baseline: str
    loss: float
    target: float | None


@dataclass(frozen=True)
class Outcome:
    """The answer. `predictions` and `advice` have one element per number of ranks in the question."""

    model: Model
    measured: Sequence[Measured]
    question: Question
    qualities: Qualities
    predictions: Sequence[Sequence[Prediction]]
    advice: Sequence[Advice]
    checks: Sequence[Check]

    @property
    def doubtful(self) -> dict[str, float]:
        """The settings that are not predicted elsewhere, with the error of the model's own check."""
        return {check.measured.label: check.error for check in doubtful(self.checks).values()}

    def doubts(self, prediction: Prediction) -> float | None:
        """Return the error for which a prediction is not believed, or None. Measured places need no belief."""
        return _doubts(doubtful(self.checks), prediction, self.question.link)


def plan(model: Model, measured: Sequence[Measured], question: Question, checks: Sequence[Check]) -> Outcome:
    """Answer the question. Raises ReportError for an unknown baseline, or if it is not clear which link is meant."""
    _check(measured, question)
    targets = {run.value("target") for each in measured for run in each.runs}
    if question.target is None and len(targets) == 1:
        question = replace(question, target=targets.pop())
    qualities = Qualities(measured)
    by_setting: defaultdict[Key, list[Measured]] = defaultdict(list)
    for each in measured:
        # On one rank only a mode without traffic says something about several ranks.
        if each.ranks > 1 or not each.traffic:
            by_setting[each.setting.key].append(each)
    predictions = [
        [prediction for group in by_setting.values() for prediction in _predict(model, group, ranks, question)]
        for ranks in question.ranks
    ]
    doubted = doubtful(checks)
    advice = [
        advise(
            each,
            qualities,
            baseline=question.baseline,
            loss=question.loss,
            target=question.target,
            doubtful=lambda prediction: _doubts(doubted, prediction, question.link),
        )
        for each in predictions
    ]
    return Outcome(model, measured, question, qualities, predictions, advice, checks)


def _doubts(doubted: Mapping[Key, Check], prediction: Prediction, link: Link) -> float | None:
    base = prediction.base
    there = prediction.ranks == base.ranks and prediction.period is None and link.node_rate_bits_per_s is None
    if there and not link.latency_s and link.rate_bits_per_s in (None, base.rate_bits_per_s):
        return None
    check = doubted.get(base.setting.key)
    return check.error if check else None


def _predict(model: Model, group: Sequence[Measured], ranks: int, question: Question) -> list[Prediction]:
    """Predict one setting, as measured and with the question's periods that the mode allows."""
    base = nearest(group, ranks, question.link.rate_bits_per_s)
    link = replace(question.link, rate_bits_per_s=question.link.rate_bits_per_s or base.rate_bits_per_s)
    periods = [each for each in question.periods if base.period not in (None, each) and each >= base.shortest_period]
    return [model.predict(base, ranks, link, period) for period in (None, *periods)]


def _check(measured: Sequence[Measured], question: Question) -> None:
    names = {name for each in measured for name in (each.label, each.setting.mode)}
    if question.baseline not in (BASELINE, *names):  # without the default baseline there are predictions, but no advice
        raise ReportError(f"--baseline: found {question.baseline!r}, expected one of {', '.join(sorted(names))}")
    rates = {each.rate_bits_per_s for each in measured}
    if question.link.rate_bits_per_s is None and len(rates) > 1:
        texts = ", ".join(sorted(map(rate, rates)))
        raise ReportError(f"--rate: found none, and the runs were measured at {texts}; expected one to predict for")
