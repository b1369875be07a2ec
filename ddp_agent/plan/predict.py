"""Prediction of a measured setting's step time: on another link, on more ranks, with another period."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ddp_agent.plan.collectives import Algorithm, Cluster, expected_max
from ddp_agent.plan.fit import Costs, Link, link_of
from ddp_agent.plan.measured import Measured
from ddp_agent.plan.traffic import Load, loads, waits_for

Scaling = Literal["weak", "strong"]

_ALL = 0.95  # if backward hides this share of its traffic, it might hide more


@dataclass(frozen=True)
class Prediction:
    """A predicted step. Bytes are those that a rank sends. `bound`: a lower bound of the speed (see `Overlap`)."""

    base: Measured
    period: int | None  # None is the measured one
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
        """The setting's label, with the predicted period."""
        if self.period is None:
            return self.base.label
        return re.sub(r"(?<=H=)(\d+,)?\d+", rf"\g<1>{self.period}", self.base.label, count=1)

    @property
    def step_s(self) -> float:
        """The seconds of a step."""
        return self.local_s + self.moving_s + self.waiting_s

    @property
    def samples_per_s(self) -> float:
        """The speed of all ranks together."""
        return self.batch / self.step_s

    @property
    def exposed_share(self) -> float:
        """The share of a step in which compute stands still for communication."""
        return (self.moving_s + self.waiting_s) / self.step_s


@dataclass(frozen=True)
class Overlap:
    """The overlap in a measured mode: seconds per step that backward hides, and that the formula does not explain.

    `all_hidden`: backward hid all of its traffic, so it could hide more than is known, and predictions are bounds.
    """

    backward_s: float = 0.0
    unexplained_s: float = 0.0
    all_hidden: bool = False


@dataclass(frozen=True)
class Model:
    """The whole model.

    `local` and `given` are independent runs by their number of ranks. The compute of `local` is used for modes that
    were not measured on that many ranks, the compute of `given` for all modes.
    """

    costs: Costs
    among: tuple[Algorithm, ...]
    local: Mapping[int, Measured]
    given: Mapping[int, Measured]
    scaling: Scaling = "weak"

    def predict(self, base: Measured, ranks: int, link: Link, period: int | None = None) -> Prediction:
        """Predict the setting of `base` for `ranks` on `link`, with its own period or another."""
        own = loads(base)
        overlap = self.overlap(base, own)
        sent = own
        if period is not None:  # gradients and means inside nodes stay as frequent
            longer = period / (base.period or period)
            sent = [replace(load, per_step=load.per_step / longer) if load.periodic else load for load in own]
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
            moving_s=max(0.0, shown_s + overlap.unexplained_s * _frequency(own, sent)) if ranks > 1 else 0.0,
            waiting_s=self._waiting_s(base, own, sent, ranks) * local_s / base.local_s,
            wire_bytes=sum(load.sent_bytes(ranks) for load in sent),
            algorithm=chosen[-1] if chosen else None,
            bound=overlap.all_hidden and shown_s > 0,
        )

    def overlap(self, base: Measured, own: Sequence[Load]) -> Overlap:
        """Compare the time in which the bytes of `base` moved with the formula for its loads `own`."""
        cluster = self.costs.cluster(base.ranks, link_of(base))
        in_backward_s = exposed_s([load for load in own if load.cover == "backward"], cluster, self.among, 0.0, 0.0)
        others_s = exposed_s([load for load in own if load.cover != "backward"], cluster, self.among, 0.0, base.local_s)
        unexplained_s = base.moving_s - others_s - in_backward_s
        backward_s = min(in_backward_s, max(0.0, -unexplained_s))
        return Overlap(
            backward_s=backward_s,
            unexplained_s=unexplained_s + backward_s,
            all_hidden=backward_s > 0 and backward_s >= _ALL * in_backward_s,
        )

    def local_s(self, base: Measured, ranks: int) -> tuple[float, float]:
        """Return the seconds of data and compute per step, and the global batch in samples."""
        there = self.given.get(ranks) or (self.local.get(ranks) if ranks != base.ranks else None)
        if there is not None:
            here = self.local.get(base.ranks)
            extra = base.local_s / here.local_s if here is not None and here.batch == base.batch else 1.0
            return there.local_s * extra, there.batch
        if self.scaling == "strong":
            return base.local_s * base.ranks / ranks, base.batch
        return base.local_s, base.batch * ranks / base.ranks

    def _waiting_s(self, base: Measured, own: Sequence[Load], sent: Sequence[Load], ranks: int) -> float:
        """Scale the measured waiting: the last rank is later among more ranks, and after longer periods."""
        if not base.straggler_s or not own:
            return 0.0
        later = expected_max(waits_for(sent, ranks)) / expected_max(waits_for(own, base.ranks))
        return base.straggler_s * later * math.sqrt(_frequency(own, sent))


def _frequency(own: Sequence[Load], sent: Sequence[Load]) -> float:
    """Return how many times as often ranks synchronise with `sent` as with `own`. A group of one does not wait."""
    now, before = (sum(load.per_step for load in each if load.group != 1) for each in (sent, own))
    return now / before if own else 1.0


def exposed_s(
    sent: Sequence[Load], cluster: Cluster, among: tuple[Algorithm, ...], backward_s: float, local_s: float
) -> float:
    """Return the exposed communication per step.

    Backward hides `backward_s` of its traffic. Steps of `local_s` seconds hide the traffic with a delay.
    """
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
    """Return the measurement to predict from: the closest in the number of ranks, then in the rate of the link."""

    def distance(each: Measured) -> tuple[float, float]:
        own, asked = each.rate_bits_per_s, rate_bits_per_s
        return abs(math.log(each.ranks / ranks)), abs(math.log(own / asked)) if own and asked else 0.0

    return min(measured, key=distance)
