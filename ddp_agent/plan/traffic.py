"""The traffic of a measured setting per step, in a form that holds for any number of ranks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ddp_agent.distributed.traffic import Collective, Kind, total_bytes, wire_bytes
from ddp_agent.plan.collectives import Algorithm, Cluster, collective
from ddp_agent.plan.measured import Measured


@dataclass(frozen=True)
class Load:
    """Collectives of one kind and size, `per_step` of them.

    `size_bytes` is the payload or, if `sharded`, the whole tensor of which each rank sends its share. `cover` is what
    hides the load: nothing, backward, or `delay` steps. It is among `group` ranks of a node or, with None, among a
    `share` of all ranks. `peers` is the number of neighbours in an exchange among many ranks; two ranks have one. A
    longer period makes a `periodic` load rarer.
    """

    kind: Kind
    per_step: float
    size_bytes: float
    cover: Literal["nothing", "backward", "steps"] = "nothing"
    delay: int = 0
    group: int | None = None
    share: float = 1.0
    peers: int = 1
    sharded: bool = False
    periodic: bool = False

    def sent_bytes(self, ranks: int) -> float:
        """Return the bytes that one rank sends per step."""
        among = self._among(ranks)
        messages = self._neighbours(among) if self.kind == "exchange" else 1
        return self.per_step * messages * wire_bytes(self.kind, among, self._payload_bytes(among))

    def seconds(self, cluster: Cluster, among: tuple[Algorithm, ...]) -> tuple[float, Algorithm | None]:
        """Return the seconds of one collective that is not hidden, and its algorithm."""
        cluster = replace(cluster, ranks=self._among(cluster.ranks))
        peers = self._neighbours(cluster.ranks)
        return collective(self.kind, cluster, self._payload_bytes(cluster.ranks), peers=peers, among=among)

    def waits_for(self, ranks: int) -> int:
        """Return the number of ranks, itself included, that must have arrived before a rank continues."""
        ranks = self._among(ranks)
        return 1 + self._neighbours(ranks) if self.kind == "exchange" else ranks

    def _payload_bytes(self, ranks: int) -> float:
        return self.size_bytes / ranks if self.sharded else self.size_bytes

    def _among(self, ranks: int) -> int:
        return max(1, round(self.share * ranks)) if self.group is None else min(ranks, self.group)

    def _neighbours(self, ranks: int) -> int:
        return min(self.peers, ranks - 1)


def loads(measured: Measured) -> list[Load]:
    """Return the traffic per step as the runs state it, scaled to the collectives and bytes that they counted."""
    if measured.ranks == 1 or not measured.payload_bytes:
        return []
    steps = int(measured.runs[0].summary["steps"])
    stated = [replace(each, count=each.count / steps) for each in measured.traffic]
    return [_load(each, measured.ranks) for each in _scale_sizes(_scale_counts(stated, measured), measured)]


def _load(each: Collective, ranks: int) -> Load:
    return Load(
        kind=each.kind,
        per_step=each.count,
        size_bytes=each.payload_bytes * each.ranks if each.sharded else each.payload_bytes,
        cover=each.cover,
        delay=each.delay,
        group=each.ranks if each.group == "node" else None,
        share=each.ranks / ranks if each.group == "owners" else 1.0,
        peers=each.peers,
        sharded=each.sharded,
        periodic=each.period is not None,
    )


def _scale_counts(stated: Sequence[Collective], measured: Measured) -> list[Collective]:
    """Scale to the counted collectives: where a cadence changes the period, the formula does not know their number."""
    paced = sum(each.calls for each in stated if each.period is not None)
    if not measured.collectives or not paced:
        return list(stated)
    factor = max(0.0, 1 + (measured.collectives - sum(each.calls for each in stated)) / paced)
    return [each if each.period is None else replace(each, count=each.count * factor) for each in stated]


def _scale_sizes(stated: Sequence[Collective], measured: Measured) -> list[Collective]:
    """Scale to the counted bytes: a formula that gives an upper limit does not know what the data needed."""
    most = total_bytes(each for each in stated if each.at_most)
    if not most:
        return list(stated)
    factor = max(0.0, 1 + (measured.payload_bytes - total_bytes(stated)) / most)
    return [replace(each, payload_bytes=each.payload_bytes * factor) if each.at_most else each for each in stated]


def waits_for(sent: Iterable[Load], ranks: int) -> int:
    """Return the largest number of ranks that must have arrived before a rank continues."""
    return max(load.waits_for(ranks) for load in sent)
