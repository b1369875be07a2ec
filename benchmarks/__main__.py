"""Entry point of `python -m benchmarks sync | step | overlap | modes | diagnostics | checkpoint`.

A benchmark is a module of this folder that has the three names of `Bench` and is listed in BENCHES. The command
starts its own ranks. Under torchrun (on several nodes, say) it uses torchrun's ranks instead.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from ddp_agent.distributed.process import TorchrunEnvironment, die_with_parent, leave

if __name__ == "__main__":
    # Before torch is imported: all ranks share this machine's cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if TorchrunEnvironment.read() is not None:
        die_with_parent()

from rich.console import Console

from benchmarks.arguments import at_least, new_file
from benchmarks.outcome import Outcome
from ddp_agent.distributed import process_group
from ddp_agent.distributed.process_group import Runtime

BENCHES = ("sync", "step", "overlap", "modes", "diagnostics", "checkpoint")


class Bench(Protocol):
    """Interface of a benchmark's module."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the benchmark's own arguments to `parser`."""
        ...

    def measure(self, arguments: argparse.Namespace, ranks: Runtime) -> Outcome:
        """Measure on every rank and return the outcome. Rank 0's is printed."""
        ...


def main(typed: Sequence[str]) -> int:
    """Run the benchmark that `typed` names and return the exit code."""
    arguments = _parser().parse_args(typed)
    if TorchrunEnvironment.read() is None:
        return _under_torchrun(arguments.ranks, typed)
    with process_group.start(arguments.device, job="bench") as ranks:
        outcome = _bench(arguments.bench).measure(arguments, ranks)
    if ranks.rank == 0:
        Console(width=None if sys.stdout.isatty() else 140).print(outcome.table())
        if arguments.json:
            outcome.write(arguments.json)
    return 0


def _under_torchrun(ranks: int, typed: Sequence[str]) -> int:
    """Run torchrun in this process, which has imported torch already."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(["--standalone", f"--nproc_per_node={ranks}", "-m", "benchmarks", *typed])
    except ChildFailedError as failed:
        print(failed, file=sys.stderr)
        return 1
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures this tree against plain torch, on CPU or GPU."
    )
    chosen = parser.add_subparsers(dest="bench", required=True)
    for name in BENCHES:
        bench = _bench(name)
        one = chosen.add_parser(name, help=bench.SUMMARY, description=bench.SUMMARY)
        one.add_argument("--ranks", type=at_least(2), default=2, help="ranks to start on this machine (2)")
        one.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: GPUs if there are any")
        one.add_argument("--json", type=new_file, metavar="FILE", help="also write the numbers to this file")
        bench.add_arguments(one)
    return parser


def _bench(name: str) -> Bench:
    return cast(Bench, import_module(f"benchmarks.{name}"))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
