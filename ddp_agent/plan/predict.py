"""Step time of a measured setting on another link, among another number of ranks, with another period."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ddp_agent.plan.collectives import Algorithm, Cluster, expected_max
from ddp_agent.plan.fit import Costs, Link, link_of
from ddp_agent.plan.measured import Measured
from ddp_agent.plan.traffic import Load, at_period, loads, meetings, waits_for

Scaling = Literal["weak", "strong"]

_ALL = 0.95  # of the traffic inside backward: if so much is hidden, more might be


@dataclass(frozen=True)
class Prediction:
    """Seconds and bytes (sent by a rank) are a step's. `bound`: at least so fast (see `Overlap.all_hidden`)."""

    base: Measured
    period: int | None  # None: as measured
    ranks: int
    batch: float
    local_s: float
    moving_s: float
    waiting_s: float
    wire_bytes: float
    algorithm: Algorithm | None
    bound: bool

    @property
    def label(self) -> str:
        if self.period is None:
            return self.base.label
        return re.sub(r"(?<=H=)(\d+,)?\d+", rf"\g<1>{self.period}", self.base.label, count=1)

    @property
    def step_s(self) -> float:
        return self.local_s + self.moving_s + self.waiting_s

    @property
    def samples_per_s(self) -> float:
        return self.batch / self.step_s

    @property
    def exposed_share(self) -> float:
        return (self.moving_s + self.waiting_s) / self.step_s


@dataclass(frozen=True)
class Overlap:
    """Of a measured mode: how long backward hides traffic, and what the formula does not explain (a step).

    `all_hidden`: nothing showed, so backward could hide more than is known.
    """

    backward_s: float = 0.0
    unexplained_s: float = 0.0
    all_hidden: bool = False


@dataclass(frozen=True)
class Model:
    """`local`: independent runs by their number of ranks, whose compute holds for modes that were not measured there;
    that of `given` ones holds for all modes.
    """

    costs: Costs
    among: tuple[Algorithm, ...]
    local: Mapping[int, Measured]
    given: Mapping[int, Measured]
    scaling: Scaling = "weak"

    def predict(self, base: Measured, ranks: int, link: Link, period: int | None = None) -> Prediction:
        own = loads(base)
        overlap = self.overlap(base, own)
        sent = own if period is None else [at_period(load, self._longer(base, period)) for load in own]
        local_s, batch = self.local_s(base, ranks)
        if link.ranks_per_node > 1:
            sent = [replace(load, group=link.ranks_per_node) if load.group else load for load in sent]
        among: tuple[Algorithm, ...] = (*self.among, "two-level") if link.node_rate_bits_per_s else self.among
        cluster = self.costs.cluster(ranks, link)
        hidden_s = overlap.backward_s * local_s / base.local_s
        shown_s = exposed_s(sent, cluster, among, hidden_s, local_s)
        largest = sorted((load for load in sent if load.group is None), key=lambda load: load.size_bytes)
        chosen = [algorithm for load in largest if (algorithm := load.seconds(cluster, among)[1])]
        return Prediction(
            base=base,
            period=period,
            ranks=ranks,
            batch=batch,
            local_s=local_s,
            moving_s=max(0.0, shown_s + overlap.unexplained_s * _as_often(own, sent)) if ranks > 1 else 0.0,
            waiting_s=self._waiting_s(base, own, sent, ranks) * local_s / base.local_s,
            wire_bytes=sum(load.sent_bytes(ranks) for load in sent),
            algorithm=chosen[-1] if chosen else None,
            bound=overlap.all_hidden and shown_s > 0,
        )

    def overlap(self, base: Measured, own: Sequence[Load]) -> Overlap:
        """From the time in which the run's bytes moved."""
        cluster = self.costs.cluster(base.ranks, link_of(base))
        in_backward_s = sum(
            load.per_step * load.seconds(cluster, self.among)[0] for load in own if load.cover == "backward"
        )
        others_s = exposed_s([load for load in own if load.cover != "backward"], cluster, self.among, 0.0, base.local_s)
        unexplained_s = base.moving_s - others_s - in_backward_s
        backward_s = min(in_backward_s, max(0.0, -unexplained_s))
        return Overlap(
            backward_s=backward_s,
            unexplained_s=unexplained_s + backward_s,
            all_hidden=backward_s > 0 and backward_s >= _ALL * in_backward_s,
        )

    def local_s(self, base: Measured, ranks: int) -> tuple[float, float]:
        """A step's data and compute, and its samples."""
        there = self.given.get(ranks) or (self.local.get(ranks) if ranks != base.ranks else None)
        if there is not None:
            here = self.local.get(base.ranks)
            extra = base.local_s / here.local_s if here is not None and here.batch == base.batch else 1.0
            return there.local_s * extra, there.batch
        if self.scaling == "strong":
            return base.local_s * base.ranks / ranks, base.batch
        return base.local_s, base.batch * ranks / base.ranks

    def _longer(self, base: Measured, period: int) -> float:
        return period / (base.period or period)

    def _waiting_s(self, base: Measured, own: Sequence[Load], sent: Sequence[Load], ranks: int) -> float:
        """The last of so many ranks comes later the more they are, and the longer they went alone."""
        if not base.straggler_s or not own:
            return 0.0
        later = expected_max(waits_for(sent, ranks)) / expected_max(waits_for(own, base.ranks))
        return base.straggler_s * later * math.sqrt(_as_often(own, sent))


def _as_often(own: Sequence[Load], sent: Sequence[Load]) -> float:
    """How many times as often ranks meet."""
    return meetings(sent) / meetings(own) if own else 1.0


def exposed_s(
    sent: Sequence[Load], cluster: Cluster, among: tuple[Algorithm, ...], backward_s: float, local_s: float
) -> float:
    """What of a step's transport shows when backward hides `backward_s` of it, and inner steps of `local_s` theirs."""
    shown_s = in_backward_s = 0.0
    for load in sent:
        each_s = load.seconds(cluster, among)[0]
        if load.cover == "backward":
            in_backward_s += load.per_step * each_s
        else:
            hidden_s = load.delay * local_s if load.cover == "steps" else 0.0
            shown_s += load.per_step * max(0.0, each_s - hidden_s)
    return shown_s + max(0.0, in_backward_s - backward_s)


def nearest(measured: Sequence[Measured], ranks: int, rate_bits_per_s: float | None) -> Measured:
    """What to predict from: among as many ranks as possible alike, then on a link as alike."""

    def distance(each: Measured) -> tuple[float, float]:
        rates = (each.rate_bits_per_s, rate_bits_per_s)
        apart = abs(math.log(rates[0] / rates[1])) if rates[0] and rates[1] else 0.0
        return abs(math.log(each.ranks / ranks)), apart

    return min(measured, key=distance)
