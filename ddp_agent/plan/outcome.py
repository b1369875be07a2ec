"""A whole plan: predictions and advice for every number of ranks that was asked about."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from ddp_agent.plan import tables, words
from ddp_agent.plan.advise import Advice, Qualities, advise, seconds_to
from ddp_agent.plan.check import Checked
from ddp_agent.plan.fit import Link
from ddp_agent.plan.measured import Measured
from ddp_agent.plan.predict import Model, Prediction, nearest
from ddp_agent.report.runs.run import ReportError

BASELINE = "allreduce"


@dataclass(frozen=True)
class Question:
    """`target` of None: what the runs' own was, if they had one in common."""

    link: Link
    ranks: Sequence[int]
    periods: Sequence[int]
    baseline: str
    loss: float
    target: float | None


@dataclass(frozen=True)
class Outcome:
    model: Model
    measured: Sequence[Measured]
    question: Question
    qualities: Qualities
    predictions: Sequence[Sequence[Prediction]]
    advice: Sequence[Advice]
    checked: Sequence[Checked]

    def show(self, console: Console) -> None:
        def lines(title: str, texts: Sequence[str]) -> None:
            console.print(f"[bold]{title}[/bold]")
            for text in texts:
                console.print(f"  - {text}", markup=False, highlight=False)
            console.print()

        lines("Fitted", words.fitted(self.model, self.measured))
        lines("Assumed", words.assumed(self.model, self.question.link))
        metric = str(self.measured[0].runs[0].metric).replace("_", " ")
        for predictions in self.predictions:
            title = f"{words.counted(predictions[0].ranks, 'rank')}, {words.place(self.question.link, self.measured)}"
            console.print(
                tables.predicted(predictions, self.qualities, title=title, metric=metric, target=self.question.target)
            )
            console.print()
        advised = [tables.advice(each, loss=self.question.loss, target=self.question.target) for each in self.advice]
        lines("Recommended", advised)
        if self.checked:
            console.print(tables.errors(self.checked, "Predicted against measured, on what was not fitted"))
        else:
            console.print("Error unknown: too few settings to leave one out; give others with --holdout", markup=False)

    def as_json(self) -> dict[str, Any]:
        costs, link = self.model.costs, self.question.link
        return {
            "fitted": {
                "message_s": costs.message_s,
                "host_byte_s": costs.host_byte_s,
                "headers": costs.headers,
                "link_known": costs.link_known,
                "settings": len({each.setting.key for each in self.measured}),
                "runs": sum(len(each.runs) for each in self.measured),
                "said": words.fitted(self.model, self.measured),
            },
            "assumed": words.assumed(self.model, link),
            "link": vars(link),
            "target": self.question.target,
            "predictions": [self._prediction(each) for predictions in self.predictions for each in predictions],
            "advice": [self._advice(each) for each in self.advice],
            "checked": [_checked(each) for each in self.checked],
        }

    def _prediction(self, each: Prediction) -> dict[str, Any]:
        quality, target = self.qualities.of(each), self.question.target
        return {
            "setting": each.label,
            "ranks": each.ranks,
            "from_ranks": each.base.ranks,
            "from_link_rate_bits_per_s": each.base.rate_bits_per_s,
            "global_batch_size": each.batch,
            "step_s": each.step_s,
            "local_s": each.local_s,
            "moving_s": each.moving_s,
            "waiting_s": each.waiting_s,
            "exposed_share": each.exposed_share,
            "samples_per_s": each.samples_per_s,
            "at_least": each.bound,
            "wire_bytes_per_step": each.wire_bytes,
            "all_reduce": each.algorithm,
            "time_to_target_s": seconds_to(target, each, quality) if quality and target is not None else None,
            "test_metric": quality.metric if quality else None,
            "seeds": quality.seeds if quality else 0,
        }

    def _advice(self, each: Advice) -> dict[str, Any]:
        return {
            "ranks": each.ranks,
            "setting": each.mode.label if each.mode else None,
            "speedup": each.speedup,
            "loss": each.loss,
            "seeds": each.seeds,
            "fastest": each.fastest.label,
            "said": tables.advice(each, loss=self.question.loss, target=self.question.target),
        }


def _checked(each: Checked) -> dict[str, Any]:
    return {
        "setting": each.measured.label,
        "ranks": each.measured.ranks,
        "link_rate_bits_per_s": each.measured.rate_bits_per_s,
        "from_ranks": each.base.ranks if each.base else None,
        "measured_samples_per_s": each.measured.samples_per_s,
        "predicted_samples_per_s": each.predicted_samples_per_s,
        "error": each.error,
        "measured_local_s": each.measured.local_s,
        "predicted_local_s": each.local_s,
        "measured_communication_s": each.measured.exposed_s,
        "predicted_communication_s": each.communication_s,
    }


def plan(model: Model, measured: Sequence[Measured], question: Question, checked: Sequence[Checked]) -> Outcome:
    """Raises ReportError for a baseline that no run has, and when it is not clear which link is meant."""
    _check(measured, question)
    question = replace(question, target=_target(measured) if question.target is None else question.target)
    qualities = Qualities(measured)
    settings: defaultdict[Any, list[Measured]] = defaultdict(list)
    for each in measured:
        if each.ranks > 1 or not each.traffic:
            settings[each.setting.key].append(each)
    predictions = [
        [found for those in settings.values() for found in _of_setting(model, those, ranks, question)]
        for ranks in question.ranks
    ]
    advice = [
        advise(each, qualities, baseline=question.baseline, loss=question.loss, target=question.target)
        for each in predictions
    ]
    return Outcome(model, measured, question, qualities, predictions, advice, checked)


def _target(measured: Sequence[Measured]) -> float | None:
    targets = {run.value("target") for each in measured for run in each.runs}
    return targets.pop() if len(targets) == 1 else None


def _of_setting(model: Model, those: Sequence[Measured], ranks: int, question: Question) -> list[Prediction]:
    base = nearest(those, ranks, question.link.rate_bits_per_s)
    link = replace(question.link, rate_bits_per_s=question.link.rate_bits_per_s or base.rate_bits_per_s)
    periods = [each for each in question.periods if base.period not in (None, each) and each >= base.shortest_period]
    return [model.predict(base, ranks, link, period) for period in (None, *periods)]


def _check(measured: Sequence[Measured], question: Question) -> None:
    names = {name for each in measured for name in (each.label, each.setting.mode)}
    if question.baseline not in (BASELINE, *names):  # without the usual one there are predictions, but no advice
        raise ReportError(f"--baseline: found {question.baseline!r}, expected one of {', '.join(sorted(names))}")
    rates = {each.rate_bits_per_s for each in measured}
    if question.link.rate_bits_per_s is None and len(rates) > 1:
        shown = ", ".join(sorted(words.link_name(each) for each in rates))
        raise ReportError(f"--rate: nothing found, and runs were measured at {shown}; expected the one to predict for")
