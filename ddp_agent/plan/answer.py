"""The answer of a plan: what to use, what it gains, and what this rests on; then one table of all settings."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from ddp_agent.outputs.units import human_seconds
from ddp_agent.plan.advice import Advice, baseline_of
from ddp_agent.plan.outcome import Outcome
from ddp_agent.plan.predict import Prediction
from ddp_agent.plan.words import network, where
from ddp_agent.report.formatting import compact, counted, listed


def answer(outcome: Outcome) -> list[str]:
    """Return the sentences: recommendations, their quality, where there is none the reason, and the evidence."""
    groups: dict[str, list[Advice]] = {}
    for advice in outcome.advice:
        groups.setdefault(advice.mode.label if advice.mode else "", []).append(advice)
    unsupported = groups.pop("", [])
    return [
        *(sentence for group in groups.values() for sentence in _use(outcome, group)),
        *_none(unsupported),
        _evidence(outcome),
    ]


def _use(outcome: Outcome, group: Sequence[Advice]) -> Iterator[str]:
    """State one setting for the numbers of ranks where it is recommended, and its quality."""
    mode, first = group[0].mode, group[0].baseline
    assert mode is not None and first is not None
    link = network(outcome.question.link, outcome.measured)
    places = [counted(each.ranks, "rank") for each in group]
    if mode.label == first.label:
        yield f"Stay with {mode.label} on {listed(places)} at {link}: nothing within the accepted loss is faster."
        return
    gains = [
        f"{compact(each.speedup)} times {'' if index else f'as fast as {first.label} '}on {place}"
        for index, (each, place) in enumerate(zip(group, places, strict=True))
        if each.speedup is not None
    ]
    unknown = f"the fastest on {listed(places)}. Its gain is unknown, since {first.label} is not predicted there"
    yield f"Use {mode.label} at {link}: predicted {listed(gains) if gains else unknown}."
    for each, place in zip(group, places, strict=True):
        if outcome.question.target is not None and each.seconds is not None and each.rests_on == each.ranks:
            yield f"It reaches {outcome.question.target:g} after {human_seconds(each.seconds)} on {place}."
    yield _quality(outcome, group)


def _quality(outcome: Outcome, group: Sequence[Advice]) -> str:
    best = group[0]
    assert best.mode is not None and best.baseline is not None and best.rests_on is not None
    ours, theirs = best.quality, best.baseline_quality
    assert ours is not None and theirs is not None
    metric = outcome.measured[0].runs[0].metric.replace("_", " ")
    seeds = "one seed each, so chance is not excluded" if best.seeds == 1 else f"means of {best.seeds} seeds"
    place = counted(best.rests_on, "rank")
    text = (
        f"Its {metric} was {ours.metric:.4f} against {theirs.metric:.4f} on {place} ({seeds}), "
        f"within the accepted loss of {outcome.question.loss:g}."
    )
    if others := [counted(each.ranks, "rank") for each in group if each.rests_on != each.ranks]:
        text += f" On {listed(others)} it was not measured and may differ."
    return text


def _none(unsupported: Sequence[Advice]) -> Iterator[str]:
    reasons: dict[str, list[Advice]] = {}
    for each in unsupported:
        reasons.setdefault(each.why_not, []).append(each)
    for reason, group in reasons.items():
        places = listed([counted(each.ranks, "rank") for each in group])
        fastest = "" if group[0].doubted else f" By time alone {group[0].fastest.label} is the fastest."
        yield f"No recommendation for {places}: {reason}.{fastest}"


def _evidence(outcome: Outcome) -> str:
    runs = sum(len(each.runs) for each in outcome.measured)
    links = dict.fromkeys((each.ranks, each.rate_bits_per_s) for each in outcome.measured)
    text = f"This rests on {counted(runs, 'run')} ({', '.join(where(*link) for link in links)})."
    if not outcome.checks:
        return f"{text} The model's error is unknown: one setting alone cannot be checked; give others with --holdout."
    sizes = [abs(check.error) for check in outcome.checks]
    text += (
        f" On settings that it was not fitted on, the model's error was {mean(sizes):.0%}, at most {max(sizes):.0%}."
    )
    if outcome.doubtful:
        names = listed([f"{name} ({error:+.0%})" for name, error in outcome.doubtful.items()])
        text += f" It does not predict {names} elsewhere."
    return text


def table_rows(outcome: Outcome) -> list[Mapping[str, str]]:
    """Return a row per setting: its metric, and the samples per second for each number of ranks."""
    settings = dict.fromkeys(each.label for predictions in outcome.predictions for each in predictions)
    metric = outcome.measured[0].runs[0].metric.replace("_", " ")
    rows = []
    for label in settings:
        found = [next((each for each in row if each.label == label), None) for row in outcome.predictions]
        known = next((quality for each in found if each and (quality := outcome.qualities.nearest(each))), None)
        row = {"setting": label, metric: f"{known.metric:.4f} ({where_measured(known.ranks)})" if known else "not run"}
        for each, predictions in zip(found, outcome.predictions, strict=True):
            row[f"samples/s, {counted(predictions[0].ranks, 'rank')}"] = _speed(outcome, each, predictions)
        rows.append((-(found[-1].samples_per_s if found[-1] else 0.0), row))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def where_measured(ranks: int) -> str:
    """Return the place of a measured quality, such as "on 2 ranks"."""
    return f"on {counted(ranks, 'rank')}"


def _speed(outcome: Outcome, each: Prediction | None, predictions: Sequence[Prediction]) -> str:
    if each is None:
        return "–"
    if outcome.doubts(each):
        return "not predicted"
    first = baseline_of(predictions, outcome.question.baseline)
    ratio = (
        "" if first is None or outcome.doubts(first) else f" ({compact(each.samples_per_s / first.samples_per_s)} ×)"
    )
    return f"{'≥ ' if each.bound else ''}{each.samples_per_s:,.0f}{ratio}"
