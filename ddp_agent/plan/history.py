"""The traffic of old runs, up to commit af591fd, whose summary does not state it, by the names of that time.

Nothing is added here: a new run states its own traffic, see `Measured.traffic`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from ddp_agent.distributed.traffic import Collective, Kind
from ddp_agent.report.runs.run import Run

_KINDS: dict[str, Kind] = {"topk": "all_gather"}
_QUANTISED = ("int8", "sign")  # an all-to-all of the tensor, then an all-gather of shares
_TWO_ALL_REDUCES = ("powersgd", "sparse")


def collectives(run: Run, settings: Mapping[str, str]) -> list[Collective]:
    """Divide the counted traffic into the collectives of the run's mode and reducer.

    Their number comes from the counted collectives (in older runs: synchronisations), their size from the bytes.
    """

    def number(name: str) -> int | None:
        text = settings.get(f"sync.{name}", "")
        return int(text) if text.isdecimal() else None

    mode, reducer = settings["sync"], settings.get("reducer", "dense")
    ranks = int(run.summary["world_size"])
    neighbours = mode == "gossip" and settings.get("sync.graph") != "complete"
    peers = 2 if settings.get("sync.graph", "ring") == "ring" else 1
    each = max(1, min(peers, ranks - 1)) if neighbours else 1 + (reducer in (*_QUANTISED, *_TWO_ALL_REDUCES))
    calls = run.value("collectives") or (run.value("syncs") or 0) * each
    payload_bytes = run.value("payload_bytes") or 0.0
    if mode == "independent":
        return []
    size_bytes = payload_bytes / calls if calls else 0.0
    mean = Collective(kind=_KINDS.get(reducer, "all_reduce"), payload_bytes=size_bytes, count=calls, ranks=ranks)
    mean = replace(mean, varies=settings.get("cadence", "fixed") != "fixed")
    if mode == "hierarchical" and (outer := number("global_period")):
        inside = _inside(run, settings, mean, number("node_period") or 1, outer)
        counted = inside.count if inside.ranks > 1 else 0.0
        return [inside, replace(mean, count=max(0.0, calls - counted), period=outer)]
    mean = replace(mean, period=number("period"))
    if neighbours:
        return [replace(mean, kind="exchange", count=calls / each, peers=peers)]
    if mode == "allreduce":
        return [replace(one, cover="backward") for one in _phases(mean, reducer)]
    if mode == "post_local_sgd" and (switch := number("switch_step")):
        first = replace(mean, count=min(calls, switch), cover="backward", period=None, until_step=switch)
        return [first, replace(mean, count=calls - first.count)]
    if mode == "streaming_diloco":
        delay = number("delay") or 0
        mean = replace(mean, shortest=(number("fragments") or 1) * (delay + 1))
        return [replace(one, cover="steps", delay=delay) if delay else one for one in _phases(mean, reducer)]
    return _phases(mean, reducer)


def _phases(mean: Collective, reducer: str) -> list[Collective]:
    """Return the two collectives of a quantised mean: one of S bytes, one of S/n."""
    if reducer not in _QUANTISED:
        return [mean]
    whole = mean.payload_bytes * 2 / (1 + 1 / mean.ranks)
    shares = replace(mean, kind="all_gather", count=mean.count / 2, payload_bytes=whole / mean.ranks, sharded=True)
    return [replace(mean, kind="all_to_all", count=mean.count / 2, payload_bytes=whole), shares]


def _inside(run: Run, settings: Mapping[str, str], mean: Collective, inner: int, outer: int) -> Collective:
    """Return the means inside a node. A node of one rank has nothing to send, but one of more ranks would have."""
    nodes = int(run.value("nodes") or 1)
    given = settings.get("ranks_per_node", "null")
    ranks = int(given) if given.isdecimal() else max(1, mean.ranks // nodes)
    often = 1.0 if inner == 1 else 1 / inner - 1 / math.lcm(inner, outer)
    count = often * int(run.summary["steps"])
    return replace(mean, count=count, ranks=ranks, group="node", cover="backward" if inner == 1 else "nothing")
