"""What was fitted and what is assumed, in plain words."""

from collections.abc import Iterable, Sequence
from statistics import median

from ddp_agent.plan.collectives import UNEVEN
from ddp_agent.plan.fit import Costs, Link, spread_s
from ddp_agent.plan.measured import Measured
from ddp_agent.plan.predict import Model


def fitted(model: Model, measured: Sequence[Measured]) -> list[str]:
    costs = model.costs
    settings, runs = len({each.setting.key for each in measured}), sum(len(each.runs) for each in measured)
    lines = [
        f"{counted(settings, 'setting')}, {counted(runs, 'run')}: {_places(measured)}",
        f"latency and bandwidth from {counted(len(costs.fitted), 'measurement')} whose communication "
        + ("is hidden behind compute, taken as if it were not" if costs.nothing_blocks else "blocks"),
        f"a message takes {duration(costs.message_s)}, besides --latency; {_bandwidth(costs, measured)}",
    ]
    if costs.one_size:
        lines.append(
            "all messages were equally long, which does not tell what a message takes from what its bytes take: all is "
            "counted as bytes. A run with another reducer (int8) would tell"
        )
    spreads = [spread for each in measured if (spread := spread_s(each)) is not None]
    if spreads:
        lines.append(
            f"ranks' steps differ by {duration(median(spreads))} (standard deviation, median of "
            f"{counted(len(spreads), 'measurement')})"
        )
    if any(each.straggler_s is None for each in costs.fitted):
        lines.append("waiting for stragglers was not recorded: all exposed communication is taken for moving bytes")
    return [*lines, f"compute: {_compute(model)}"]


def _places(measured: Iterable[Measured]) -> str:
    places = dict.fromkeys((each.ranks, each.rate_bits_per_s) for each in measured)
    return ", ".join(f"{counted(ranks, 'rank')} at {link_name(bits)}" for ranks, bits in places)


def _bandwidth(costs: Costs, measured: Iterable[Measured]) -> str:
    if not costs.link_known:
        if not costs.host_byte_s:
            return "bytes took no time that could be told"
        return f"bytes move at {rate(8 / costs.host_byte_s)} (the link's rate is not recorded, so this stands for it)"
    origin = "by its interface counters" if costs.headers_counted else "assumed, not counted"
    rates = sorted({each.rate_bits_per_s for each in measured if each.rate_bits_per_s})
    return (
        f"a byte crosses the link as {costs.headers:.3f} ({origin}), and takes {duration(costs.host_byte_s)} besides: "
        f"bytes move at {', '.join(f'{_efficiency(costs, each):.0%} of {rate(each)}' for each in rates)}"
    )


def _efficiency(costs: Costs, bits_per_s: float) -> float:
    return 8 / bits_per_s / costs.hop(bits_per_s).byte_s


def _compute(model: Model) -> str:
    given = [f"{counted(each.ranks, 'rank')}: {duration(each.local_s)} a step" for each in model.given.values()]
    own = [f"{counted(n, 'rank')}: {duration(each.local_s)}" for n, each in model.local.items() if n not in model.given]
    parts = [f"given with --compute, {', '.join(given)}"] if given else []
    parts += [f"independent runs, {', '.join(own)}"] if own else []
    return "; ".join([*parts, "else each mode's own"]) if parts else "each mode's own (there is no independent run)"


def assumed(model: Model, link: Link) -> list[str]:
    """What no run said."""
    fastest = (
        f"{' or '.join(model.among)}, whichever is the faster" if len(model.among) > 1 else f"{model.among[0]} alone"
    )
    levels = "; two-level: a ring in each node, one between nodes" if link.node_rate_bits_per_s else ""
    weak = "the micro-batch and its time stay (weak scaling)"
    strong = "the global batch stays, compute is shared (strong scaling)"
    delay = (
        "the measured link adds no delay of its own" if model.costs.link_known else "--latency is added to what it had"
    )
    return [
        f"all-reduce: {fastest}. Ring: 2 (n - 1) messages, 2 (n - 1)/n of the tensor; tree: 2 log2 n, twice it{levels}",
        "all-gather: n - 1 messages and packets (topk); with an all-to-all: n messages, bytes as a ring's (int8, sign)",
        f"neighbours: one exchange; with several neighbours on other nodes as if of {UNEVEN:g} times its bytes",
        f"among numbers of ranks without an independent run {weak if model.scaling == 'weak' else strong}",
        "stragglers: normal, independent; the last of n comes E(max of n), about sqrt(2 ln n), deviations late",
        "backward hides as many seconds as it did; an all-reduce with a delay hides behind that many steps",
        f"{delay}; what a mode took beyond the formulas stays, in seconds a step",
    ]


def place(link: Link, measured: Iterable[Measured]) -> str:
    """What is predicted for."""
    bits = link.rate_bits_per_s
    text = link_name(bits) if bits else ", ".join(sorted({link_name(each.rate_bits_per_s) for each in measured}))
    text += f" and {duration(link.latency_s)} more a message" if link.latency_s else ""
    if link.node_rate_bits_per_s:
        text += f", nodes of {counted(link.ranks_per_node, 'rank')} at {rate(link.node_rate_bits_per_s)}"
    return text


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def link_name(bits_per_s: float | None) -> str:
    return "unknown rate" if bits_per_s is None else rate(bits_per_s)


def rate(bits_per_s: float) -> str:
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if bits_per_s < 999.5:
            return f"{bits_per_s:.3g} {unit}"
        bits_per_s /= 1000
    return f"{bits_per_s:,.3g} Tbit/s"


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns" if seconds else "0"
