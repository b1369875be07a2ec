"""python -m ddp_agent.plan RUNS… --rate 100mbit --latency 20ms --ranks 4,64: predict another link, and advise.

Fits compute, latency, bandwidth and stragglers from finished runs, predicts every mode that they measured, and
recommends one within a stated loss of quality. Prints the answer, what it rests on, and one table; --explain shows the
fit, the assumptions, the parts of a step, and the errors of the model on runs that it was not fitted on.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ddp_agent.outputs.streams import run_command
from ddp_agent.plan import arguments as types
from ddp_agent.plan.as_json import as_json
from ddp_agent.plan.as_text import print_outcome
from ddp_agent.plan.fit import Link, algorithms, fit
from ddp_agent.plan.measured import Measured, check_same_task, labels_of, measure, read, why_not
from ddp_agent.plan.outcome import BASELINE, Outcome, Question, plan
from ddp_agent.plan.predict import Model
from ddp_agent.plan.validation import check_holdout, leave_each_out
from ddp_agent.report.formatting import finite
from ddp_agent.report.runs.run import ReportError, Run


def main(typed: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit code: 2 if it refused."""
    parser = _parser()
    arguments = parser.parse_args(typed)
    if (arguments.ranks_per_node is None) != (arguments.node_rate is None):
        parser.error("--ranks-per-node and --node-rate: found one, expected both or neither")
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        outcome, unusable = _outcome(arguments)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    for run in unusable:
        console.print(f"not used: {run.path}: {why_not(run)}", soft_wrap=True, markup=False, highlight=False)
    print_outcome(outcome, console, explain=arguments.explain)
    if arguments.json:
        try:
            arguments.json.write_text(json.dumps(as_json(outcome), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            print(f"--json {arguments.json}: cannot be written ({error.strerror})", file=sys.stderr)
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ddp_agent.plan", description=__doc__.partition("\n\n")[2])
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="runs, or sweeps of runs, to fit from")
    titles = ("the link and the ranks to predict for", "the recommendation", "the model")
    link, quality, model = (parser.add_argument_group(title).add_argument for title in titles)
    link("--rate", type=types.rate, help="of links between nodes, such as 100mbit; default: as measured")
    link("--latency", type=types.duration, default=0.0, help="added to each message, such as 20ms; default: 0")
    link("--ranks", type=types.counts, metavar="N,N", help="such as 4,64,1024; default: as measured")
    link("--ranks-per-node", type=types.count, metavar="N", help="that share a link; default: 1")
    link("--node-rate", type=types.rate, metavar="RATE", help="between ranks of a node, such as 200gbit")
    link("--period", type=types.counts, metavar="H,H", help="also predict periods that were not run")
    link(
        "--scaling", choices=("weak", "strong"), default="weak",
        help="weak (default): among more ranks the micro-batch stays. strong: the global batch stays",
    )  # fmt: skip
    link(
        "--algorithm", choices=("ring", "tree", "fastest"),
        help="of all-reduce. Default: ring for runs on CPU (gloo has no other), fastest on GPU (NCCL chooses)",
    )  # fmt: skip
    quality("--loss", type=types.loss, default=0.005, help="acceptable, of the test metric; default: 0.005")
    quality("--baseline", default=BASELINE, help="mode or setting to count the loss from; default: allreduce")
    quality("--target", type=finite, help="test metric to reach; default: the runs' own target")
    model(
        "--compute", type=Path, nargs="+", default=[], metavar="DIR",
        help="independent runs: their compute per step is used for their number of ranks",
    )  # fmt: skip
    model("--holdout", type=Path, nargs="+", default=[], metavar="DIR", help="runs to test the model on")
    parser.add_argument("--explain", action="store_true", help="also print the fit, the assumptions and the errors")
    parser.add_argument("--json", type=types.new_file, metavar="FILE", help="also write all numbers there")
    return parser


def _outcome(arguments: argparse.Namespace) -> tuple[Outcome, list[Run]]:
    (runs, unusable), (given, ungiven), (held, unheld) = (
        read(directories) if directories else ([], [])
        for directories in (arguments.directories, arguments.compute, arguments.holdout)
    )
    paths = {run.path.resolve() for run in runs}
    if again := [run for run in held if run.path.resolve() in paths]:
        raise ReportError(f"--holdout {again[0].path}: found among the runs to fit from, expected others")
    check_same_task([*runs, *given, *held])
    labels = labels_of([*runs, *given, *held])
    measured, holdout = measure(runs, labels), measure(held, labels)
    among = algorithms(measured, arguments.algorithm)
    model = Model(
        costs=fit(measured, among),
        among=among,
        local={each.ranks: each for each in reversed(measured) if not each.traffic},
        given=_given(measure(given, labels)),
        scaling=arguments.scaling,
    )
    ranks = arguments.ranks or sorted({each.ranks for each in measured if each.ranks > 1})
    _check_ranks(ranks, arguments.ranks_per_node, model.given, [each.ranks for each in holdout])
    link = Link(arguments.rate, arguments.latency, arguments.ranks_per_node or 1, arguments.node_rate)
    checks = check_holdout(model, measured, holdout, link) if holdout else leave_each_out(measured, among)
    question = Question(link, ranks, arguments.period or [], arguments.baseline, arguments.loss, arguments.target)
    return plan(model, measured, question, checks), [*unusable, *ungiven, *unheld]


def _given(independent: Sequence[Measured]) -> Mapping[int, Measured]:
    for each in independent:
        if each.traffic:
            raise ReportError(
                f"--compute {each.runs[0].path}: found a run of sync={each.setting.mode}, expected sync=independent, "
                "whose steps are compute alone"
            )
    return {each.ranks: each for each in independent}


def _check_ranks(
    ranks: Sequence[int], ranks_per_node: int | None, given: Mapping[int, Measured], held: Sequence[int]
) -> None:
    for count in given:
        if count not in (*ranks, *held):
            expected = ", ".join(map(str, dict.fromkeys([*ranks, *held])))
            raise ReportError(f"--compute: found an independent run on {count} ranks, expected one on {expected}")
    for count in ranks if ranks_per_node else ():
        if ranks_per_node and count > ranks_per_node and count % ranks_per_node:
            raise ReportError(f"--ranks: found {count}, expected a multiple of --ranks-per-node {ranks_per_node}")


if __name__ == "__main__":
    sys.exit(run_command(main))
