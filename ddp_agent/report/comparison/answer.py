"""The answer in sentences: what the numbers show, and what they do not."""

from collections.abc import Sequence

from ddp_agent.report.comparison.result import Line, Result, Verdict
from ddp_agent.report.formatting import compact, counted, listed, with_interval

_ADVANTAGES = {"wire_bytes": "sends the fewest bytes", "train_s": "trains fastest"}


def answer(result: Result) -> list[str]:
    """Return paragraphs: the findings, the better modes first, and last what cannot be concluded."""
    if len(result.lines) == 1:
        findings = [_single(result)]
    elif all(line.verdict in ("baseline", "no verdict") for line in result.lines):
        findings = [_without_verdicts(result)]
    else:
        findings = [*_judged(result, "better"), *_undecided(result), *_cheapest(result), *_judged(result, "worse")]
    return [*findings, " ".join(_caveats(result))]


def _single(result: Result) -> str:
    line = result.baseline
    value = with_interval(line.metric, result.metric_decimals)
    seeds = counted(line.metric.n, "seed")
    return f"{line.label} reaches a {result.metric_name} of {value} ({seeds}); there is nothing to compare it with."


def _without_verdicts(result: Result) -> str:
    choose = max if result.higher_is_better else min
    best = choose(result.lines, key=lambda line: line.metric.mean)
    value = with_interval(best.metric, result.metric_decimals)
    reasons = {line.reason for line in result.lines if line.verdict == "no verdict"}
    reason = listed(sorted(reasons))
    if reasons == {"one seed"}:
        reason = "with one seed, nothing shows what another seed would have changed"
    return f"No verdicts: {reason}. The best {result.metric_name} of these runs is {best.label}'s, {value}."


def _judged(result: Result, verdict: Verdict) -> list[str]:
    differences = [
        f"{line.label} ({with_interval(line.difference, result.metric_decimals, '+')})"
        for line in result.compared
        if line.difference and line.verdict == verdict
    ]
    heading = f"{verdict.capitalize()} than {result.baseline.label} in {result.metric_name}"
    return [f"{heading}: {listed(differences)}."] if differences else []


def _undecided(result: Result) -> list[str]:
    labels = [line.label for line in result.lines if line.verdict == "no difference shown"]
    heading = f"Not shown to differ from {result.baseline.label} in {result.metric_name}"
    return [f"{heading}: {listed(labels)}."] if labels else []


def _cheapest(result: Result) -> list[str]:
    """Name the cheapest of the baseline and the modes that were not shown to be worse."""
    lines = [result.baseline, *(line for line in result.compared if line.verdict in ("better", "no difference shown"))]
    advantages: dict[str, list[str]] = {}
    for key, advantage in _ADVANTAGES.items():
        if len(lines) > 1 and (label := _least(lines, key)):
            advantages.setdefault(label, []).append(f"{advantage} ({_saving(lines, label, key)})")
    parts = [f"{label} {' and '.join(texts)}{_risk(result, label)}" for label, texts in advantages.items()]
    return [f"Of those not shown to be worse, {'; '.join(parts)}."] if parts else []


def _least(lines: Sequence[Line], key: str) -> str | None:
    """Return the label with the lowest mean cost, or None if the cost of a line is unknown."""
    costs = {line.label: cost.mean for line in lines if (cost := line.costs[key])}
    return min(costs, key=lambda label: costs[label]) if len(costs) == len(lines) else None


def _saving(lines: Sequence[Line], label: str, key: str) -> str:
    """State the cost of `label` beside that of the baseline, the first of `lines`."""
    unit, size = ("MB", 1e6) if key.endswith("_bytes") else ("s", 1.0)
    costs = {line.label: cost.mean / size for line in lines if (cost := line.costs[key])}
    least, baseline = costs[label], lines[0].label
    if label == baseline:
        return f"{compact(least)} {unit}"
    ratio = f", {compact(costs[baseline] / least)} × as much" if least else ""
    return f"{compact(least)} {unit}; {baseline} {compact(costs[baseline])} {unit}{ratio}"


def _risk(result: Result, label: str) -> str:
    """State by how much `label` may be worse than the baseline at the bad end of the interval."""
    difference = next(line.difference for line in result.lines if line.label == label)
    if difference is None or difference.low is None or difference.high is None:
        return ""
    worst = -difference.low if result.higher_is_better else difference.high
    if worst <= 0:
        return ""
    return f", and may be up to {worst:.{result.metric_decimals}f} worse than {result.baseline.label}"


def _caveats(result: Result) -> list[str]:
    caveats = []
    bounds = [
        abs(bound)
        for line in result.compared
        if line.difference and line.verdict == "no difference shown"
        for bound in (line.difference.low, line.difference.high)
        if bound is not None
    ]
    if bounds:
        reach = f"{max(bounds):.{result.metric_decimals}f}"
        caveats.append(
            f"“No difference shown” is not “equal”: a difference of up to {reach} would still agree with these runs."
        )
    without = [f"{line.label} ({line.reason})" for line in result.lines if line.verdict == "no verdict"]
    if without and result.compared:
        caveats.append(f"No verdict on {listed(without)}.")
    if result.failed:
        runs = counted(len(result.failed), "run")
        caveats.append(f"{runs} did not finish or cannot be read: means over the others may be too good.")
    caveats.append("Seconds hold for this machine and its network. Everything holds for this model, data and budget.")
    return caveats
