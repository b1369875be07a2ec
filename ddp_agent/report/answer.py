"""What the numbers say, and what they do not, in sentences."""

from collections.abc import Sequence

from ddp_agent.report.interval import Estimate
from ddp_agent.report.result import Line, Result, Verdict
from ddp_agent.report.shown import compact, listed, metric_decimals, plural, with_interval

_DEEDS = {"wire_bytes": "sends the fewest bytes", "train_s": "trains fastest"}


def answer(result: Result) -> list[str]:
    """Paragraphs: what was found, best first, and in the last one what cannot be said."""
    if len(result.lines) == 1:
        found = [_alone(result)]
    elif all(line.verdict in ("baseline", "no verdict") for line in result.lines):
        found = [_without_verdicts(result)]
    else:
        found = [*_apart(result, "better"), *_alike(result), *_choice(result), *_apart(result, "worse")]
    return [*found, " ".join(_unsaid(result))]


def _alone(result: Result) -> str:
    line, decimals = result.baseline, metric_decimals(result)
    value = with_interval(line.metric, decimals)
    seeds = plural(line.metric.n, "seed")
    return f"{line.label} reaches a {result.metric_name} of {value} ({seeds}); there is nothing to compare it with."


def _without_verdicts(result: Result) -> str:
    choose = max if result.higher_is_better else min
    best = choose(result.lines, key=lambda line: line.metric.mean)
    value = with_interval(best.metric, metric_decimals(result))
    return f"No verdicts: {_why_none(result)}. The best {result.metric_name} of these runs is {best.label}'s, {value}."


def _why_none(result: Result) -> str:
    reasons = {line.why for line in result.lines if line.verdict == "no verdict"}
    if reasons == {"one seed"}:
        return "with one seed, nothing shows what another seed would have changed"
    return listed(sorted(reasons))


def _apart(result: Result, judgement: Verdict) -> list[str]:
    lines, decimals = [line for line in result.compared if line.verdict == judgement], metric_decimals(result)
    each = [f"{line.label} ({_signed(line, decimals)})" for line in lines]
    what = f"{judgement.capitalize()} than {result.baseline.label} in {result.metric_name}"
    return [f"{what}: {listed(each)}."] if each else []


def _signed(line: Line, decimals: int) -> str:
    assert line.difference is not None
    return with_interval(line.difference, decimals, "+")


def _alike(result: Result) -> list[str]:
    labels = [line.label for line in result.lines if line.verdict == "no difference shown"]
    what = f"Not shown to differ from {result.baseline.label} in {result.metric_name}"
    return [f"{what}: {listed(labels)}."] if labels else []


def _choice(result: Result) -> list[str]:
    """Who has the least cost of those that are as good as the baseline, for all that was shown."""
    lines = [result.baseline, *(line for line in result.compared if line.verdict in ("better", "no difference shown"))]
    choices: dict[str, list[str]] = {}
    for key, does in _DEEDS.items():
        if len(lines) > 1 and (label := _least(lines, key)):
            choices.setdefault(label, []).append(f"{does} ({_saved(lines, label, key)})")
    said = [f"{label} {' and '.join(deeds)}{_at_worst(result, label)}" for label, deeds in choices.items()]
    return [f"Of those not shown to be worse, {'; '.join(said)}."] if said else []


def _least(lines: Sequence[Line], key: str) -> str | None:
    """Who has the least of it on average; None if that of one is not known."""
    costs = {line.label: cost.mean for line in lines if (cost := line.costs[key])}
    return min(costs, key=lambda label: costs[label]) if len(costs) == len(lines) else None


def _saved(lines: Sequence[Line], label: str, key: str) -> str:
    """Against the first of the lines, which is the baseline."""
    unit, size = ("MB", 1e6) if key.endswith("_bytes") else ("s", 1.0)
    costs = {line.label: cost.mean / size for line in lines if (cost := line.costs[key])}
    least, baseline = costs[label], lines[0].label
    if label == baseline:
        return f"{compact(least)} {unit}"
    times = f", {compact(costs[baseline] / least)} × as much" if least else ""
    return f"{compact(least)} {unit}; {baseline} {compact(costs[baseline])} {unit}{times}"


def _at_worst(result: Result, label: str) -> str:
    """How much worse it may be for all that is known."""
    difference = next(line.difference for line in result.lines if line.label == label)
    if difference is None or difference.low is None or difference.high is None:
        return ""
    worst = -difference.low if result.higher_is_better else difference.high
    if worst <= 0:
        return ""
    return f", and may be up to {worst:.{metric_decimals(result)}f} worse than {result.baseline.label}"


def _unsaid(result: Result) -> list[str]:
    said = []
    alike = [line for line in result.compared if line.verdict == "no difference shown"]
    if alike:
        reach = max(abs(bound) for line in alike if line.difference for bound in _bounds(line.difference))
        shown = f"{reach:.{metric_decimals(result)}f}"
        said.append(
            f"“No difference shown” is not “equal”: a difference of up to {shown} would still agree with these runs."
        )
    without = [line for line in result.lines if line.verdict == "no verdict"]
    if without and result.compared:
        said.append(f"No verdict on {listed([f'{line.label} ({line.why})' for line in without])}.")
    if result.failed:
        runs = plural(len(result.failed), "run")
        said.append(f"{runs} did not finish or cannot be read: a mean over those that did may flatter.")
    return [*said, "Seconds hold for this machine and its network, and all of it for this model, data and budget."]


def _bounds(estimate: Estimate) -> list[float]:
    return [bound for bound in (estimate.low, estimate.high) if bound is not None]
