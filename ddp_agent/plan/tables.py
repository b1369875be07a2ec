"""Predictions, advice and errors, for people."""

from collections.abc import Sequence
from statistics import mean

from rich.markup import escape
from rich.table import Table

from ddp_agent.outputs.units import human_seconds
from ddp_agent.plan.advise import Advice, Qualities, seconds_to
from ddp_agent.plan.check import Checked
from ddp_agent.plan.measured import Measured
from ddp_agent.plan.predict import Prediction
from ddp_agent.plan.words import counted, link_name

NO_DATA = "no data"


def predicted(
    predictions: Sequence[Prediction], qualities: Qualities, *, title: str, metric: str, target: float | None
) -> Table:
    """The fastest first. `≥`: at least so fast, since more may hide behind backward than is known."""
    table = Table(title=title)
    table.add_column("setting")
    names = ["ms a step", "local", "moving", "waiting", "exposed", "samples/s", "MB a step", "all-reduce"]
    for name in [*names, *([] if target is None else [f"time to {target:g}"]), metric]:
        table.add_column(name, justify="right")
    for each in sorted(predictions, key=lambda each: -each.samples_per_s):
        milliseconds = [_milliseconds(s) for s in (each.step_s, each.local_s, each.moving_s, each.waiting_s)]
        speed = f"{'≥ ' if each.bound else ''}{each.samples_per_s:,.0f}"
        cells = [escape(each.label), *milliseconds, f"{each.exposed_share:.0%}", speed, _megabytes(each.wire_bytes)]
        reached = [] if target is None else [time_cell(each, qualities, target)]
        table.add_row(*cells, each.algorithm or "–", *reached, quality_cell(each, qualities))
    return table


def time_cell(prediction: Prediction, qualities: Qualities, target: float) -> str:
    quality = qualities.of(prediction)
    if quality is None:
        return NO_DATA
    seconds = seconds_to(target, prediction, quality)
    if seconds is None:
        reached = quality.reached(target)
        return f"in {reached} of {len(quality.runs)} runs" if reached else "not reached"
    return human_seconds(seconds)


def quality_cell(prediction: Prediction, qualities: Qualities) -> str:
    quality = qualities.of(prediction)
    return NO_DATA if quality is None else f"{quality.metric:.4f} (n={quality.seeds})"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.3f}" if count else "0"


def advice(found: Advice, *, loss: float, target: float | None) -> str:
    fastest = f"by time alone {found.fastest.label} is the fastest"
    if found.mode is None:
        return f"{counted(found.ranks, 'rank')}: {NO_DATA} to recommend by ({found.why_not}); {fastest}"
    first = found.baseline.label if found.baseline else ""
    faster = "" if found.speedup is None else f", {found.speedup:.3g} times as fast as {first}"
    faster = ", the baseline itself" if found.mode.label == first else faster
    per = f"{found.mode.samples_per_s:,.0f} samples/s"
    if target is not None:
        per = f"{target:g} after {human_seconds(found.seconds or 0.0)}"
    lost = f"loss {max(0.0, found.loss or 0.0):.4f} of at most {loss:g}"
    rests = "one seed: its spread is not known" if found.seeds == 1 else f"means of {found.seeds} seeds"
    other = "" if found.fastest.label == found.mode.label else f"; {fastest}"
    return f"{counted(found.ranks, 'rank')}: {found.mode.label}, {per}{faster}; {lost} ({rests}){other}"


def errors(checked: Sequence[Checked], title: str) -> Table:
    table = Table(title=title, caption=f"{summary(checked)}. In brackets: predicted")
    for name in ("setting", "predicted from"):
        table.add_column(name)
    for name in ("measured on", "samples/s", "error", "local, ms", "communication, ms"):
        table.add_column(name, justify="right")
    for each in sorted(checked, key=lambda each: -abs(each.error)):
        there, base = each.measured, each.base
        table.add_row(
            escape(there.label),
            _place(base) if base else "other settings",
            _place(there),
            f"{there.samples_per_s:,.0f} ({each.predicted_samples_per_s:,.0f})",
            f"{each.error:+.1%}",
            f"{_milliseconds(there.local_s)} ({_milliseconds(each.local_s)})",
            f"{_milliseconds(there.exposed_s)} ({_milliseconds(each.communication_s)})",
        )
    return table


def _place(measured: Measured) -> str:
    return f"{counted(measured.ranks, 'rank')}, {link_name(measured.rate_bits_per_s)}"


def summary(checked: Sequence[Checked]) -> str:
    sizes = [abs(each.error) for each in checked]
    return f"mean error {mean(sizes):.1%}, largest {max(sizes):.1%}, of {counted(len(checked), 'measurement')}"
