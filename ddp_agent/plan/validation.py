"""Errors of the model on runs that it was not fitted on."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from ddp_agent.plan.collectives import Algorithm
from ddp_agent.plan.fit import Link, fit, lateness, link_of, spread_s
from ddp_agent.plan.measured import Key, Measured
from ddp_agent.plan.predict import Model, exposed_s, nearest
from ddp_agent.plan.traffic import loads
from ddp_agent.report.runs.run import ReportError

DOUBTFUL = 0.30  # a setting whose own check is off by more is not predicted for other links, ranks or periods


@dataclass(frozen=True)
class Check:
    """A measurement and its prediction. `base` is the run predicted from; with None, the setting counts as never run.

    `batch` is in samples; `local_s` and `communication_s` are predicted seconds per step.
    """

    measured: Measured
    base: Measured | None
    batch: float
    local_s: float
    communication_s: float

    @property
    def predicted_samples_per_s(self) -> float:
        """The predicted speed."""
        return self.batch / (self.local_s + self.communication_s)

    @property
    def error(self) -> float:
        """The relative error of the speed, positive where the prediction is too fast."""
        return self.predicted_samples_per_s / self.measured.samples_per_s - 1


def doubtful(checks: Sequence[Check]) -> dict[Key, Check]:
    """Return the worst check of each setting for which the model must not be believed.

    A prediction that is too slow since it cannot know what backward hides is no reason: the setting's own runs tell.
    """
    worst: dict[Key, Check] = {}
    for check in sorted(checks, key=lambda each: abs(each.error)):
        hides = check.base is None and any(load.cover != "nothing" for load in loads(check.measured))
        if abs(check.error) > DOUBTFUL and not (hides and check.error < 0):
            worst[check.measured.setting.key] = check
    return worst


def check_holdout(model: Model, fitted: Sequence[Measured], holdout: Sequence[Measured], link: Link) -> list[Check]:
    """Predict each measurement on the link that it was made on, or on `link` if the run does not say.

    Raises ReportError if neither is known.
    """
    checks = []
    for each in holdout:
        there = link_of(each) if each.rate_bits_per_s else link
        if model.costs.link_known and there.rate_bits_per_s is None:
            raise ReportError(
                f"--holdout {each.runs[0].path}: its summary.json does not say how fast its link was "
                "(link_rate_bits_per_s); give --rate"
            )
        bases = [base for base in fitted if base.setting.key == each.setting.key]
        if bases:
            base = nearest(bases, each.ranks, there.rate_bits_per_s)
            predicted = model.predict(base, each.ranks, there)
            communication_s = predicted.moving_s + predicted.waiting_s
            checks.append(Check(each, base, predicted.batch, predicted.local_s, communication_s))
        else:
            checks.append(_as_new_setting(each, fitted, model, there))
    return checks


def leave_each_out(measured: Sequence[Measured], among: tuple[Algorithm, ...]) -> list[Check]:
    """Predict each setting from the other settings' costs, compute and stragglers, and from its own counted bytes."""
    checks: list[Check] = []
    for key in dict.fromkeys(each.setting.key for each in measured if loads(each)):
        others = [each for each in measured if each.setting.key != key]
        try:
            model = Model(fit(others, among), among, local={}, given={})
        except ReportError:
            continue  # the others alone do not show what communication costs
        own = [each for each in measured if each.setting.key == key]
        known = [each for each in own if any(other.where == each.where for other in others)]
        checks += [_as_new_setting(each, others, model, link_of(each)) for each in known]
    return checks


def _as_new_setting(each: Measured, others: Sequence[Measured], model: Model, link: Link) -> Check:
    """Predict a setting as if it had never been run: coding time and hiding behind backward are then unknown."""
    similar = [other for other in others if (other.ranks, other.batch) == (each.ranks, each.batch)] or others
    independent = [other.local_s for other in similar if not other.traffic]
    local_s = mean(independent) if independent else median(other.local_s for other in similar)
    moving_s = exposed_s(loads(each), model.costs.cluster(each.ranks, link), model.among, 0.0, local_s)
    spreads = [spread for other in similar if (spread := spread_s(other)) is not None]
    waiting_s = lateness(each) * median(spreads) if spreads else 0.0
    return Check(each, None, each.batch, local_s, moving_s + waiting_s)
