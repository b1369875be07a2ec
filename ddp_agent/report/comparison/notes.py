"""Notes that a reader of the tables needs."""

from collections.abc import Iterator

from ddp_agent.report.comparison.result import Line, Result
from ddp_agent.report.formatting import counted, listed
from ddp_agent.report.runs.environment import environment

_AFFECTS_TIME = ("device", "cpus", "platform", "torch_version", "commit")


def notes(result: Result) -> list[str]:
    """Return the notes, one sentence or two each."""
    kinds = (_chance, _orders, _missing_seeds, _targets, _files, _machines)
    return [note for kind in kinds for note in kind(result)]


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
        missing = [str(seed) for seed in all_seeds if seed not in line.metric.by_seed]
        if missing:
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
    damaged = [run.name for run in result.runs if run.lines_cut]
    if damaged:
        yield f"Damaged lines of metrics.jsonl were passed over in {listed(damaged)}."
    unknown = [run.name for run in result.runs if not run.config]
    if unknown:
        yield f"Known by their summaries alone, without .hydra/config.yaml: {listed(unknown)}."


def _machines(result: Result) -> Iterator[str]:
    for key, values in environment(result.runs).items():
        if key in _AFFECTS_TIME and len(values) > 1:
            yield f"Not all runs had the same {key}: {listed(list(values))}. Times may differ for that alone."
