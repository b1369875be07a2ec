"""Costs of a message and a byte, by least squares over the modes whose communication is not hidden."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ddp_agent.plan.collectives import Algorithm, Cluster, Hop, expected_max
from ddp_agent.plan.measured import Measured
from ddp_agent.plan.traffic import loads, waits_for
from ddp_agent.report.runs.run import ReportError

# 1,448 bytes of data have 66 bytes of headers, and two such packets 66 bytes of acknowledgement: 1.07, less in larger
# packets.
HEADERS = 1.06
_ENOUGH_BYTES = 1e6  # with fewer, a run's interface counters say nothing about headers
_COLLINEAR = 1e-6


@dataclass(frozen=True)
class Link:
    """The link between nodes. With a rate of None it is the link of the measurement, whatever its rate."""

    rate_bits_per_s: float | None = None
    latency_s: float = 0.0
    ranks_per_node: int = 1
    node_rate_bits_per_s: float | None = None


@dataclass(frozen=True)
class Costs:
    """The fitted costs.

    `host_byte_s` is the time of a byte beyond its time on the link, or all of it if the link's rate is unknown.
    `one_size`: all messages were equally long, so `message_s` is unknown and taken as 0. `nothing_blocks`: every mode
    hid its communication, and the fit counts all of it as not hidden.
    """

    message_s: float
    host_byte_s: float
    headers: float = HEADERS
    headers_counted: bool = False
    link_known: bool = True
    fitted: tuple[Measured, ...] = field(default=(), repr=False)
    one_size: bool = False
    nothing_blocks: bool = False

    def hop(self, rate_bits_per_s: float | None, latency_s: float = 0.0) -> Hop:
        """Return the costs on a link of this rate. It replaces `host_byte_s` if that stands for an unknown link."""
        if rate_bits_per_s is None:
            return Hop(self.message_s + latency_s, self.host_byte_s)
        on_link_s = self.headers * 8 / rate_bits_per_s
        return Hop(self.message_s + latency_s, on_link_s + (self.host_byte_s if self.link_known else 0.0))

    def cluster(self, ranks: int, link: Link) -> Cluster:
        """Return the cluster of so many ranks on `link`."""
        inside = self.hop(link.node_rate_bits_per_s)
        return Cluster(ranks, self.hop(link.rate_bits_per_s, link.latency_s), link.ranks_per_node, inside)


def link_of(measured: Measured) -> Link:
    """Return the link of a measurement. Of an unknown link it is not known which ranks share it, so none do."""
    rate = measured.rate_bits_per_s
    return Link(rate, ranks_per_node=measured.ranks_per_node if rate else 1)


def algorithms(measured: Iterable[Measured], asked: str | None) -> tuple[Algorithm, ...]:
    """Return the algorithms to choose from: the ring for gloo, which runs on CPU use; ring and tree for NCCL."""
    if asked in ("ring", "tree"):
        return (asked,)  # type: ignore[return-value]
    on_cpu = all(run.summary.get("device") == "cpu" for each in measured for run in each.runs)
    return ("ring",) if asked is None and on_cpu else ("ring", "tree")


def fit(measured: Sequence[Measured], among: tuple[Algorithm, ...] = ("ring",)) -> Costs:
    """Fit the costs. Raises ReportError if the runs do not show what communication costs."""
    sending = [each for each in measured if loads(each)]
    _check(measured, sending)
    blocking = [each for each in sending if all(load.cover == "nothing" or load.group == 1 for load in loads(each))]
    rows = [each for each in blocking or sending if each.moving_s > 0]
    if not rows:
        raise ReportError("nothing to fit: bytes moved in no time (all of exposed_comm_s is straggler_wait_s)")
    headers = _headers(sending)
    costs = Costs(
        message_s=0.0,
        host_byte_s=0.0,
        headers=headers or HEADERS,
        headers_counted=headers is not None,
        link_known=sending[0].rate_bits_per_s is not None,
        fitted=tuple(rows),
        nothing_blocks=not blocking,
    )
    for _ in among:  # the fitted costs decide which algorithm is the fastest
        costs = _least_squares(rows, costs, among)
    return costs


def _check(measured: Sequence[Measured], sending: Sequence[Measured]) -> None:
    if not sending:
        found = ", ".join(sorted({f"{each.label} on {each.ranks}" for each in measured}))
        raise ReportError(f"nothing to fit: no run sent anything between ranks (found {found}); add one that did")
    unknown = [each for each in sending if each.rate_bits_per_s is None]
    if unknown and len(unknown) < len(sending):
        raise ReportError(
            f"link_rate_bits_per_s: some runs say how fast their link was, others, such as {unknown[0].runs[0].path}, "
            "do not; fit them apart"
        )


def _headers(sending: Iterable[Measured]) -> float | None:
    """Return the link bytes per counted byte, by the interface counters of nodes of one rank. None without enough."""
    runs = [run for each in sending if each.ranks_per_node == 1 for run in each.runs]
    runs = [run for run in runs if run.value("link_bytes") and (run.value("wire_bytes") or 0.0) >= _ENOUGH_BYTES]
    crossed, sent = (sum(float(run.summary[key]) for run in runs) for key in ("link_bytes", "wire_bytes"))
    return crossed / sent if runs else None


def _least_squares(rows: Sequence[Measured], costs: Costs, among: tuple[Algorithm, ...]) -> Costs:
    """Minimise the relative errors, so that small messages weigh as much as large ones. No cost is negative."""
    mm = mb = bb = my = by = 0.0
    for each in rows:
        messages, sent_bytes, on_link_s = _work(each, costs, among)
        m, b, y = (x / each.moving_s for x in (messages, sent_bytes, each.moving_s - on_link_s))
        mm, mb, bb, my, by = mm + m * m, mb + m * b, bb + b * b, my + m * y, by + b * y
    determinant = mm * bb - mb * mb
    one_size = determinant <= _COLLINEAR * mm * bb
    solution = (0.0, by / bb) if one_size else ((my * bb - by * mb) / determinant, (by * mm - my * mb) / determinant)
    if min(solution) < 0:
        alone = [(max(0.0, my / mm), 0.0), (0.0, max(0.0, by / bb))]
        solution = max(alone, key=lambda costs: costs[0] * my + costs[1] * by)
    return replace(costs, message_s=solution[0], host_byte_s=solution[1], one_size=one_size)


def _work(measured: Measured, costs: Costs, among: tuple[Algorithm, ...]) -> tuple[float, float, float]:
    """Return messages and bytes per step, and the seconds per step on the link if its rate is known."""
    ranks, link, sent = measured.ranks, link_of(measured), loads(measured)
    chosen = [load.seconds(costs.cluster(ranks, link), among)[1] for load in sent]

    def total(cluster: Cluster) -> float:
        pairs = zip(sent, chosen, strict=True)
        return sum(load.per_step * load.seconds(cluster, (each,) if each else among)[0] for load, each in pairs)

    messages, sent_bytes = (
        total(Cluster(ranks, hop, link.ranks_per_node, hop)) for hop in (Hop(1.0, 0.0), Hop(0.0, 1.0))
    )
    return messages, sent_bytes, total(replace(costs, message_s=0.0, host_byte_s=0.0).cluster(ranks, link))


def spread_s(measured: Measured) -> float | None:
    """Return the standard deviation of the ranks' step times, from the waiting at synchronisations.

    None if waiting was not measured, or ranks never synchronised.
    """
    late = lateness(measured)
    return measured.straggler_s / late if measured.straggler_s is not None and late else None


def lateness(measured: Measured) -> float:
    """Return the waiting per step, in deviations of a step: after H steps ranks deviate sqrt(H) times as much."""
    sent = loads(measured)
    return expected_max(waits_for(sent, measured.ranks)) * math.sqrt(measured.syncs) if sent else 0.0
