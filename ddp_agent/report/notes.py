"""What a reader of the tables has to know."""

from collections.abc import Iterator

from ddp_agent.report.facts import environment
from ddp_agent.report.result import Line, Result
from ddp_agent.report.shown import listed, plural

_BEARS_ON_TIME = ("device", "cpus", "platform", "torch_version", "commit")


def notes(result: Result) -> list[str]:
    return [note for of in (_chance, _orders, _gaps, _targets, _sources, _machines) for note in of(result)]


def _chance(result: Result) -> Iterator[str]:
    if result.compared:
        yield (
            f"{plural(len(result.compared), 'comparison')} with {result.baseline.label}, each at 95 %: "
            "of modes that do not differ at all, about one in twenty would be called better or worse by chance."
        )
    mode, label = result.baseline.row.mode, result.baseline.label
    if sum(line.row.mode == mode for line in result.lines) > 1:
        yield f"Several rows are {mode}; the baseline is {label} (--baseline chooses)."


def _orders(result: Result) -> Iterator[str]:
    seed = result.runs[0].seed
    orders = len({run.summary["order_sha256"] for run in result.runs if run.seed == seed})
    if orders > 1:
        yield f"Samples were dealt to ranks in {orders} ways, as slicing says: between these, their order differs."


def _gaps(result: Result) -> Iterator[str]:
    everywhere = sorted({run.seed for run in result.runs})
    for line in result.lines:
        missing = [seed for seed in everywhere if seed not in line.metric.by_seed]
        if missing:
            seeds = f"seed{'s' * (len(missing) > 1)} {listed(list(map(str, missing)))}"
            yield f"{line.label} lacks {seeds}, which others have{_used(line)}."


def _used(line: Line) -> str:
    if line.verdict == "baseline":
        return ""
    if line.difference is None:
        return "; it has none in common with the baseline"
    return f"; its difference is over the {plural(line.difference.n, 'seed')} in common"


def _targets(result: Result) -> Iterator[str]:
    targets = sorted({value for run in result.runs if (value := run.value("target")) is not None})
    if result.target is None and targets:
        shown = listed([f"{target:g}" for target in targets])
        yield f"Not all runs had the same target ({shown}): --target chooses one."
    if result.target is not None and not any(line.reached and line.reached.runs for line in result.lines):
        yield f"No run reached the target {result.target:g}."


def _sources(result: Result) -> Iterator[str]:
    cut = [run.name for run in result.runs if run.lines_cut]
    if cut:
        yield f"metrics.jsonl has lines that are not whole, which were passed over, in {listed(cut)}."
    unknown = [run.name for run in result.runs if not run.config]
    if unknown:
        yield f"Without .hydra/config.yaml, so known by their summaries alone: {listed(unknown)}."


def _machines(result: Result) -> Iterator[str]:
    for key, having in environment(result.runs).items():
        if key in _BEARS_ON_TIME and len(having) > 1:
            yield f"Not all runs had the same {key}: {listed(list(having))}. Times may differ for that alone."
