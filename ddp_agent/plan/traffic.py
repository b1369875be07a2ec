"""What a mode sends a step, in a form that does not depend on how many ranks there are."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ddp_agent.plan.collectives import Algorithm, Cluster, Kind, collective, wire_bytes
from ddp_agent.plan.measured import Measured

_KINDS: dict[str, Kind] = {"topk": "all_gather", "int8": "quantised", "sign": "quantised"}


@dataclass(frozen=True)
class Load:
    """Collectives of one size, `per_step` of them.

    `cover`: what goes on meanwhile, for "steps" as many as `delay`. `group`: so many ranks each, None: all of them.
    `peers` are those of an exchange among many ranks; two have one.
    """

    kind: Kind
    per_step: float
    size_bytes: float
    cover: Literal["nothing", "backward", "steps"] = "nothing"
    delay: int = 0
    group: int | None = None
    peers: int = 1

    def sent_bytes(self, ranks: int) -> float:
        """A step, by one rank."""
        ranks = self._among(ranks)
        return self.per_step * wire_bytes(self.kind, ranks, self.size_bytes, peers=self._neighbours(ranks))

    def seconds(self, cluster: Cluster, among: tuple[Algorithm, ...]) -> tuple[float, Algorithm | None]:
        """Of one collective, nothing of it hidden; and the algorithm."""
        cluster = replace(cluster, ranks=self._among(cluster.ranks))
        peers = self._neighbours(cluster.ranks)
        return collective(self.kind, cluster, self.size_bytes, peers=peers, among=among)

    def waits_for(self, ranks: int) -> int:
        """How many ranks, itself among them, have to come before one can go on."""
        ranks = self._among(ranks)
        return 1 + self._neighbours(ranks) if self.kind == "exchange" else ranks

    def _among(self, ranks: int) -> int:
        return ranks if self.group is None else min(ranks, self.group)

    def _neighbours(self, ranks: int) -> int:
        return min(self.peers, ranks - 1)


def loads(measured: Measured) -> list[Load]:
    """How often comes from the counted collectives (without them: synchronisations), how much from counted bytes."""
    setting, ranks = measured.setting, measured.ranks
    kind = _kind(measured)
    peers = 2 if setting.values.get("sync.graph", "ring") == "ring" else 1
    each = _calls_each(measured, kind, min(peers, ranks - 1))
    calls = measured.collectives or measured.syncs * each
    if ranks == 1 or not calls or not measured.payload_bytes:
        return []
    size_bytes = measured.payload_bytes / calls
    if setting.mode == "hierarchical" and setting.number("global_period"):
        return _hierarchical(measured, calls, size_bytes)
    if kind == "quantised":  # S to all, then S/n to all
        return _covered(Load(kind, calls / 2, size_bytes * 2 / (1 + 1 / ranks)), measured)
    if kind == "exchange":
        return _covered(Load(kind, calls / each, size_bytes, peers=peers), measured)
    return _covered(Load(kind, calls, size_bytes), measured)


def _kind(measured: Measured) -> Kind:
    setting = measured.setting
    if setting.mode == "gossip" and setting.values.get("sync.graph") != "complete":
        return "exchange"
    return _KINDS.get(setting.reducer, "all_reduce")


def _calls_each(measured: Measured, kind: Kind, peers: int) -> int:
    """Counted calls that make one averaging."""
    if kind == "exchange":
        return max(1, peers)
    return 2 if kind == "quantised" or measured.setting.reducer in ("powersgd", "sparse") else 1


def _covered(load: Load, measured: Measured) -> list[Load]:
    setting = measured.setting
    if setting.mode == "allreduce":
        return [replace(load, cover="backward")]
    if setting.mode == "streaming_diloco" and (delay := setting.number("delay")):
        return [replace(load, cover="steps", delay=delay)]
    if setting.mode == "post_local_sgd" and (switch := setting.number("switch_step")):
        steps = measured.runs[0].summary["steps"]
        first = min(load.per_step, switch / steps)  # a collective a step: gradients of one bucket
        return [replace(load, per_step=first, cover="backward"), replace(load, per_step=load.per_step - first)]
    return [load]


def _hierarchical(measured: Measured, calls: float, size_bytes: float) -> list[Load]:
    """A node of one rank has nothing to send inside, but with more ranks would have."""
    setting = measured.setting
    group = int(setting.values.get("ranks_per_node", measured.ranks_per_node))
    inner, outer = setting.number("node_period") or 1, setting.number("global_period") or 1
    inside = 1.0 if inner == 1 else 1 / inner - 1 / math.lcm(inner, outer)
    return [
        Load("all_reduce", inside, size_bytes, "backward" if inner == 1 else "nothing", group=group),
        Load("all_reduce", max(0.0, calls - (inside if group > 1 else 0.0)), size_bytes),
    ]


def at_period(load: Load, factor: float) -> Load:
    """With a period so many times as long. Gradients, and what nodes do inside, stay as often."""
    return load if load.group or load.cover == "backward" else replace(load, per_step=load.per_step / factor)


def meetings(sent: Iterable[Load]) -> float:
    """How often a step ranks wait for each other; a rank is not late for itself."""
    return sum(load.per_step for load in sent if load.group != 1)
