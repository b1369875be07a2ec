"""Places and links as the answer and the tables name them."""

from collections.abc import Iterable

from ddp_agent.plan.fit import Link
from ddp_agent.plan.measured import Measured
from ddp_agent.report.formatting import counted, duration, rate


def network(link: Link, measured: Iterable[Measured]) -> str:
    """Return the link in question, or the measured ones, such as "100 Mbit/s and 20 ms more per message"."""
    rates = {link.rate_bits_per_s} if link.rate_bits_per_s else {each.rate_bits_per_s for each in measured}
    text = ", ".join(sorted(map(rate, rates)))
    text += f" and {duration(link.latency_s)} more per message" if link.latency_s else ""
    if link.node_rate_bits_per_s:
        text += f", nodes of {counted(link.ranks_per_node, 'rank')} at {rate(link.node_rate_bits_per_s)}"
    return text


def where(ranks: int, bits_per_s: float | None) -> str:
    """Return the place of a measurement, such as "2 ranks at 1 Gbit/s"."""
    return f"{counted(ranks, 'rank')} at {rate(bits_per_s)}"
