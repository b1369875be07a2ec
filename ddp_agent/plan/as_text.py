"""A plan as text: the answer and one table; with --explain also fit, assumptions, all predictions and errors."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ddp_agent.outputs.units import human_seconds
from ddp_agent.plan.advice import Advice, seconds_to
from ddp_agent.plan.answer import answer, table_rows
from ddp_agent.plan.collectives import UNEVEN
from ddp_agent.plan.fit import Costs, Link, spread_s
from ddp_agent.plan.measured import Measured
from ddp_agent.plan.outcome import Outcome, Question
from ddp_agent.plan.predict import Model, Prediction
from ddp_agent.plan.validation import Check
from ddp_agent.plan.words import network, where
from ddp_agent.report.formatting import counted, duration, rate

NO_DATA = "no data"


def print_outcome(outcome: Outcome, console: Console, *, explain: bool) -> None:
    """Print the answer and a table, and with `explain` everything, in 140 columns where the console has as many."""
    question, measured = outcome.question, outcome.measured
    _print_list(console, "Answer", answer(outcome))
    rows = table_rows(outcome)
    console.print(_table(f"Predicted at {network(question.link, measured)}", rows, left=["setting"]))
    if not explain:
        console.print("--explain shows the fit, the assumptions, the parts of a step and the errors.", markup=False)
        return
    console.print()
    _print_list(console, "Fitted", fitted(outcome.model, measured))
    _print_list(console, "Assumed", assumed(outcome.model, question.link))
    for predictions in outcome.predictions:
        console.print(_predictions(outcome, predictions), "")
    _print_list(console, "Recommended", [recommendation(each, question) for each in outcome.advice])
    if outcome.checks:
        console.print(_errors(outcome.checks))
    else:
        console.print("Error unknown: too few settings to leave one out; give others with --holdout", markup=False)


def _print_list(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print(f"[bold]{title}[/bold]")
    for line in lines:
        console.print(f"  - {line}", markup=False, highlight=False)
    console.print()


def fitted(model: Model, measured: Sequence[Measured]) -> list[str]:
    """State the fitted costs and the runs that they come from."""
    costs = model.costs
    settings, runs = len({each.setting.key for each in measured}), sum(len(each.runs) for each in measured)
    links = dict.fromkeys((each.ranks, each.rate_bits_per_s) for each in measured)
    spreads = [spread for each in measured if (spread := spread_s(each)) is not None]
    hidden = "is hidden behind compute, taken as if it were not" if costs.nothing_blocks else "blocks"
    lines = [
        f"{counted(settings, 'setting')}, {counted(runs, 'run')}: {', '.join(where(*link) for link in links)}",
        f"latency and bandwidth from {counted(len(costs.fitted), 'measurement')} whose communication {hidden}",
        f"a message takes {duration(costs.message_s)}, besides --latency; {_bandwidth(costs, measured)}",
    ]
    if costs.one_size:
        lines.append(
            "all messages were equally long, so the time per message cannot be separated from that per byte: all "
            "is counted as bytes. A run with another reducer (int8) would tell"
        )
    if spreads:
        of = counted(len(spreads), "measurement")
        lines.append(f"ranks' steps differ by {duration(median(spreads))} (standard deviation, median of {of})")
    if any(each.straggler_s is None for each in costs.fitted):
        lines.append("waiting for stragglers was not recorded: all exposed communication is taken for moving bytes")
    return [*lines, f"compute: {_compute(model)}"]


def _bandwidth(costs: Costs, measured: Iterable[Measured]) -> str:
    if not costs.link_known and not costs.host_byte_s:
        return "the time that bytes took was too short to measure"
    if not costs.link_known:
        return f"bytes move at {rate(8 / costs.host_byte_s)} (the link's rate is not recorded, so this stands for it)"
    origin = "by its interface counters" if costs.headers_counted else "assumed, not counted"
    rates = sorted({each.rate_bits_per_s for each in measured if each.rate_bits_per_s})
    speeds = [f"{8 / bits_per_s / costs.hop(bits_per_s).byte_s:.0%} of {rate(bits_per_s)}" for bits_per_s in rates]
    return (
        f"a byte crosses the link as {costs.headers:.3f} ({origin}), and takes {duration(costs.host_byte_s)} besides: "
        f"bytes move at {', '.join(speeds)}"
    )


def _compute(model: Model) -> str:
    given = [f"{counted(each.ranks, 'rank')}: {duration(each.local_s)} per step" for each in model.given.values()]
    own = [f"{counted(n, 'rank')}: {duration(each.local_s)}" for n, each in model.local.items() if n not in model.given]
    parts = [f"given with --compute, {', '.join(given)}"] if given else []
    parts += [f"independent runs, {', '.join(own)}"] if own else []
    return "; ".join([*parts, "else each mode's own"]) if parts else "each mode's own (there is no independent run)"


def assumed(model: Model, link: Link) -> list[str]:
    """State the assumptions that no run confirms."""
    algorithms = " or ".join(model.among) + (", whichever is faster" if len(model.among) > 1 else " alone")
    two_level = "; two-level: a ring in each node, one between nodes" if link.node_rate_bits_per_s else ""
    scaling = {
        "weak": "the micro-batch and its time stay (weak scaling)",
        "strong": "the global batch stays, compute is shared (strong scaling)",
    }[model.scaling]
    known = "the measured link adds no delay of its own"
    delay = known if model.costs.link_known else "--latency is added to the delay that the link had"
    return [
        f"all-reduce: {algorithms}. Ring: 2 (n - 1) messages, 2 (n - 1)/n of the tensor; "
        f"tree: 2 log2 n messages, twice the tensor{two_level}",
        "all-gather (topk): n - 1 messages and packets; with an all-to-all (int8, sign): n messages, bytes of a ring",
        f"neighbours: one exchange; with several neighbours on other nodes, bytes take {UNEVEN:g} times as long",
        f"among numbers of ranks without an independent run {scaling}",
        "stragglers: normal, independent; the last of n comes E(max of n), about sqrt(2 ln n), deviations late",
        "backward hides as many seconds as measured; an all-reduce with a delay hides behind that many steps",
        f"{delay}; time that the formulas do not explain stays, in seconds per step",
    ]


def _predictions(outcome: Outcome, predictions: Sequence[Prediction]) -> Table:
    """Tabulate predictions, the fastest first. "≥" marks a lower bound (see `Overlap.all_hidden`)."""
    ranks, link = counted(predictions[0].ranks, "rank"), network(outcome.question.link, outcome.measured)
    rows = [
        {
            "setting": each.label + (" (its own check is off)" if outcome.doubts(each) else ""),
            "ms/step": _milliseconds(each.step_s),
            "local": _milliseconds(each.local_s),
            "moving": _milliseconds(each.moving_s),
            "waiting": _milliseconds(each.waiting_s),
            "exposed": f"{each.exposed_share:.0%}",
            "samples/s": f"{'≥ ' if each.bound else ''}{each.samples_per_s:,.0f}",
            "MB/step": f"{each.wire_bytes / 1e6:,.3f}" if each.wire_bytes else "0",
            "all-reduce": each.algorithm or "–",
            **_quality(outcome, each),
        }
        for each in sorted(predictions, key=lambda each: -each.samples_per_s)
    ]
    return _table(f"{ranks}, {link}", rows, left=["setting"])


def _quality(outcome: Outcome, prediction: Prediction) -> dict[str, str]:
    """Return the cells of the time to the target, if there is a target, and of the metric."""
    quality, target = outcome.qualities.of(prediction), outcome.question.target
    metric, time = NO_DATA, NO_DATA
    if quality is not None:
        metric = f"{quality.metric:.4f} (n={quality.seeds})"
        reached = sum(run.first_at(target or 0.0) is not None for run in quality.runs)
        seconds = seconds_to(target, prediction, quality)
        missed = f"in {reached} of {len(quality.runs)} runs" if reached else "not reached"
        time = missed if seconds is None else human_seconds(seconds)
    times = {} if target is None else {f"time to {target:g}": time}
    return times | {outcome.measured[0].runs[0].metric.replace("_", " "): metric}


def recommendation(advice: Advice, question: Question) -> str:
    """State which setting to use, or why the runs do not support one."""
    ranks, fastest = counted(advice.ranks, "rank"), f"by time alone {advice.fastest.label} is the fastest"
    if advice.mode is None:
        return f"{ranks}: {NO_DATA} to recommend by ({advice.why_not}){'' if advice.doubted else f'; {fastest}'}"
    baseline = advice.baseline.label if advice.baseline else ""
    faster = "" if advice.speedup is None else f", {advice.speedup:.3g} times as fast as {baseline}"
    faster = ", the baseline itself" if advice.mode.label == baseline else faster
    speed = f"{advice.mode.samples_per_s:,.0f} samples/s"
    if question.target is not None and advice.rests_on == advice.ranks:
        speed = f"{question.target:g} after {human_seconds(advice.seconds or 0.0)}"
    loss = f"loss {max(0.0, advice.loss or 0.0):.4f} of at most {question.loss:g}"
    seeds = "one seed: its spread is not known" if advice.seeds == 1 else f"means of {advice.seeds} seeds"
    if advice.rests_on != advice.ranks:
        seeds += f", on {counted(advice.rests_on or 0, 'rank')}; not measured on {ranks}"
    other = "" if advice.fastest.label == advice.mode.label else f"; {fastest}"
    return f"{ranks}: {advice.mode.label}, {speed}{faster}; {loss} ({seeds}){other}"


def _errors(checks: Sequence[Check]) -> Table:
    sizes = [abs(each.error) for each in checks]
    summary = f"mean error {mean(sizes):.1%}, largest {max(sizes):.1%}, of {counted(len(checks), 'measurement')}"
    rows = [
        {
            "setting": each.measured.label,
            "predicted from": where(each.base.ranks, each.base.rate_bits_per_s) if each.base else "other settings",
            "measured on": where(each.measured.ranks, each.measured.rate_bits_per_s),
            "samples/s": f"{each.measured.samples_per_s:,.0f} ({each.predicted_samples_per_s:,.0f})",
            "error": f"{each.error:+.1%}",
            "local, ms": f"{_milliseconds(each.measured.local_s)} ({_milliseconds(each.local_s)})",
            "communication, ms": f"{_milliseconds(each.measured.exposed_s)} ({_milliseconds(each.communication_s)})",
        }
        for each in sorted(checks, key=lambda each: -abs(each.error))
    ]
    title = "Predicted against measured, on runs that were not fitted"
    return _table(title, rows, left=["setting", "predicted from"], caption=f"{summary}. In brackets: predicted")


def _table(title: str, rows: Sequence[Mapping[str, str]], *, left: Sequence[str], caption: str | None = None) -> Table:
    """Return a table with the keys of `rows` as heads. The columns named in `left` are text, the others numbers."""
    table = Table(title=title, caption=caption)
    for name in rows[0]:
        table.add_column(escape(name), justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*map(escape, row.values()))
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
