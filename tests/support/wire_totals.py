"""Bytes on the wire of stated collectives."""

from collections.abc import Iterable

from ddp_agent.distributed.traffic import Collective, wire_bytes


def total_wire_bytes(collectives: Iterable[Collective]) -> float:
    """Return what a rank sends in all collectives under bandwidth-optimal algorithms (of a broadcast, its source)."""
    return sum(each.calls * wire_bytes(each.kind, each.ranks, each.payload_bytes) for each in collectives)
