"""The answer in sentences (what the numbers show, and what they do not), and the notes below the tables."""

from collections.abc import Iterator, Mapping, Sequence

from ddp_agent.report.comparison.result import NO_COMMON_SEED, ONE_SEED, Line, Result, Verdict
from ddp_agent.report.formatting import compact, counted, listed, with_interval
from ddp_agent.report.runs.facts import environment

# Keys of costs, with what is said of the row that has the least, and the unit.
_ADVANTAGES = {"wire_bytes": ("sends the fewest bytes", "MB", 1e6), "train_s": ("trains fastest", "s", 1.0)}
_AFFECTS_TIME = ("device", "cpus", "platform", "torch_version", "commit")


def answer(result: Result) -> list[str]:
    """Return paragraphs: the findings, the better modes first, and last what cannot be concluded."""
    if len(result.lines) == 1:
        findings = [_single(result)]
    elif all(line.verdict in ("baseline", "no verdict") for line in result.lines):
        findings = [_without_verdicts(result)]
    else:
        labels = [line.label for line in result.lines if line.verdict == "no difference shown"]
        heading = f"Not shown to differ from {result.baseline.label} in {result.metric_name}"
        undecided = [f"{heading}: {_few(labels)}."] if labels else []
        findings = [*_judged(result, "better"), *undecided, *_cheapest(result), *_judged(result, "worse")]
    return [*findings, " ".join(_caveats(result))]


def _few(names: Sequence[str]) -> str:
    """Join the first names of many, so that the answer stays an answer. The table has all."""
    most = 6
    return listed(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def _single(result: Result) -> str:
    line = result.baseline
    value = with_interval(line.metric, result.metric_decimals)
    seeds = counted(line.metric.n, "seed")
    return (
        f"{line.label} reaches a {result.metric_name} of {value} ({seeds}); there is nothing to compare it with. "
        "Runs of another mode, with the same seeds, would give a comparison."
    )


def _without_verdicts(result: Result) -> str:
    choose = max if result.higher_is_better else min
    best = choose(result.lines, key=lambda line: line.metric.mean)
    value = with_interval(best.metric, result.metric_decimals)
    reasons = {line.reason: None for line in result.lines if line.verdict == "no verdict"}
    text = " ".join(_why(result, reason) for reason in reasons)
    return f"There is no verdict yet. {text} The best {result.metric_name} of these runs is {best.label}'s, {value}."


def _why(result: Result, reason: str) -> str:
    """Explain in a sentence why lines have no verdict, and what would give one."""
    lines = [line for line in result.lines if line.verdict == "no verdict" and line.reason == reason]
    names, baseline = _few([line.label for line in lines]), result.baseline.label
    if reason == NO_COMMON_SEED:
        have = "has" if len(lines) == 1 else "have"
        return f"{names} {have} no seed in common with {baseline}: run both with the same seeds."
    if reason == ONE_SEED:
        return (
            f"With one seed, nothing shows what another seed would have changed between {baseline} and {names}: "
            "run more seeds, such as seed=0,1,2."
        )
    differ = "differs" if len(lines) == 1 else "each differ"
    return (
        f"{names} {differ} from {baseline} by the same amount with every seed, so nothing shows how large chance is: "
        "run more seeds."
    )


def _judged(result: Result, verdict: Verdict) -> list[str]:
    differences = [
        f"{line.label} ({with_interval(line.difference, result.metric_decimals, '+')})"
        for line in result.compared
        if line.difference and line.verdict == verdict
    ]
    heading = f"{verdict.capitalize()} than {result.baseline.label} in {result.metric_name}"
    return [f"{heading}: {_few(differences)}."] if differences else []


def _cheapest(result: Result) -> list[str]:
    """Name the cheapest of the baseline and the modes that were not shown to be worse."""
    lines = [result.baseline, *(line for line in result.compared if line.verdict in ("better", "no difference shown"))]
    advantages: dict[str, list[str]] = {}
    for key, (advantage, unit, size) in _ADVANTAGES.items():
        costs = {line.label: cost.mean / size for line in lines if (cost := line.costs[key])}
        if len(costs) == len(lines) > 1:
            label = min(costs, key=costs.__getitem__)
            saving = _saving(costs, label, result.baseline.label, unit)
            advantages.setdefault(label, []).append(f"{advantage} ({saving})")
    parts = [f"{label} {' and '.join(texts)}{_risk(result, label)}" for label, texts in advantages.items()]
    return [f"Of those not shown to be worse, {'; '.join(parts)}."] if parts else []


def _saving(costs: Mapping[str, float], label: str, baseline: str, unit: str) -> str:
    """State the cost of `label` beside the baseline's."""
    least = costs[label]
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
    text = f", and may be up to {worst:.{result.metric_decimals}f} worse than {result.baseline.label}"
    return text if worst > 0 else ""


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
        caveats.append(f"No verdict on {_few(without)}.")
    if result.failed:
        runs = counted(len(result.failed), "run")
        caveats.append(f"{runs} did not finish or cannot be read: means over the others may be too good.")
    caveats.append("Seconds hold for this machine and its network. Everything holds for this model, data and budget.")
    return caveats


def notes(result: Result) -> list[str]:
    """Return the notes, one sentence or two each."""
    kinds = (_frozen, _chance, _orders, _missing_seeds, _targets, _files, _machines)
    return [note for kind in kinds for note in kind(result)]


def _frozen(result: Result) -> Iterator[str]:
    shares = {run.mode: share for run in result.runs if (share := run.value("frozen_share")) is not None and share > 0}
    if shares:
        parts = listed([f"{share:.0%} in {mode}" for mode, share in sorted(shares.items())])
        yield f"Of the bytes sent, frozen parameters have {parts}: they never change, and need not be sent."


def _chance(result: Result) -> Iterator[str]:
    if result.compared:
        yield (
            f"{counted(len(result.compared), 'comparison')} with {result.baseline.label}, each at 95 %: "
            "of modes that do not differ at all, about one in twenty would be called better or worse by chance."
        )
    mode, label = result.baseline.row.mode, result.baseline.label
    if sum(line.row.mode == mode for line in result.lines) > 1:
        yield f"Several rows are {mode}; the baseline is {label} (--baseline chooses)."


def _orders(result: Result) -> Iterator[str]:
    seed = result.runs[0].seed
    orders = len({run.summary["order_sha256"] for run in result.runs if run.seed == seed})
    if orders > 1:
        yield f"Samples were dealt to ranks in {orders} ways (see slicing), so their order differs between these."


def _missing_seeds(result: Result) -> Iterator[str]:
    all_seeds = sorted({run.seed for run in result.runs})
    for line in result.lines:
        if missing := [str(seed) for seed in all_seeds if seed not in line.metric.by_seed]:
            noun = "seed" if len(missing) == 1 else "seeds"
            yield f"{line.label} lacks {noun} {listed(missing)}, which others have{_used(line)}."


def _used(line: Line) -> str:
    if line.verdict == "baseline":
        return ""
    if line.difference is None:
        return "; it has none in common with the baseline"
    return f"; its difference is over the {counted(line.difference.n, 'seed')} in common"


def _targets(result: Result) -> Iterator[str]:
    targets = sorted({value for run in result.runs if (value := run.value("target")) is not None})
    if result.target is None and targets:
        values = listed([f"{target:g}" for target in targets])
        yield f"Not all runs had the same target ({values}): --target chooses one."
    if result.target is not None and not any(line.reached and line.reached.runs for line in result.lines):
        yield f"No run reached the target {result.target:g}."


def _files(result: Result) -> Iterator[str]:
    if damaged := [run.name for run in result.runs if run.lines_cut]:
        yield f"Damaged lines of metrics.jsonl were passed over in {listed(damaged)}."
    if unknown := [run.name for run in result.runs if not run.config]:
        yield f"Known by their summaries alone, without .hydra/config.yaml: {listed(unknown)}."


def _machines(result: Result) -> Iterator[str]:
    for key, values in environment(result.runs).items():
        if key in _AFFECTS_TIME and len(values) > 1:
            yield f"Not all runs had the same {key}: {listed(list(values))}. Times may differ for that alone."
