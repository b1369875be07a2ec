"""How far off the model is, on runs it was not fitted on."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from ddp_agent.plan.collectives import Algorithm
from ddp_agent.plan.fit import Link, fit, lateness, link_of, spread_s
from ddp_agent.plan.measured import Measured
from ddp_agent.plan.predict import Model, exposed_s, nearest
from ddp_agent.plan.traffic import loads
from ddp_agent.report.runs.run import ReportError


@dataclass(frozen=True)
class Checked:
    """`base`: the same setting's run that was predicted from; None: as if the setting had never been run."""

    measured: Measured
    base: Measured | None
    batch: float
    local_s: float
    communication_s: float

    @property
    def predicted_samples_per_s(self) -> float:
        return self.batch / (self.local_s + self.communication_s)

    @property
    def error(self) -> float:
        """Relative; positive: predicted too fast."""
        return self.predicted_samples_per_s / self.measured.samples_per_s - 1


def of_holdout(model: Model, fitted: Sequence[Measured], holdout: Sequence[Measured], link: Link) -> list[Checked]:
    """On the link where each was measured, or `link` if it does not say. Raises ReportError when neither is known."""
    checked = []
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
            found = model.predict(base, each.ranks, there)
            checked.append(Checked(each, base, found.batch, found.local_s, found.moving_s + found.waiting_s))
        else:
            checked.append(_as_if_new(each, fitted, model, there))
    return checked


def leaving_each_out(measured: Sequence[Measured], among: tuple[Algorithm, ...]) -> list[Checked]:
    """Each setting predicted from the others' costs, compute and stragglers, and from what it counted itself."""
    checked: list[Checked] = []
    for key in dict.fromkeys(each.setting.key for each in measured if loads(each)):
        others = [each for each in measured if each.setting.key != key]
        try:
            model = Model(fit(others, among), among, local={}, given={})
        except ReportError:
            continue  # the others alone do not say what communication costs
        mine = [each for each in measured if each.setting.key == key]
        known = [each for each in mine if any(other.where == each.where for other in others)]
        checked += [_as_if_new(each, others, model, link_of(each)) for each in known]
    return checked


def _as_if_new(each: Measured, others: Sequence[Measured], model: Model, link: Link) -> Checked:
    """What only a run of its own could tell is left out: coding, and what backward hides."""
    alike = [other for other in others if (other.ranks, other.batch) == (each.ranks, each.batch)] or others
    alone = [other.local_s for other in alike if not other.traffic]
    local_s = mean(alone) if alone else median(other.local_s for other in alike)
    sent = loads(each)
    moving_s = exposed_s(sent, model.costs.cluster(each.ranks, link), model.among, 0.0, local_s)
    spreads = [spread for other in alike if (spread := spread_s(other)) is not None]
    waiting_s = lateness(each) * median(spreads) if spreads else 0.0
    return Checked(each, None, each.batch, local_s, moving_s + waiting_s)
