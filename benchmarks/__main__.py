"""python -m benchmarks sync | step | overlap | diagnostics | checkpoint | peers: a table, and how it was measured.

It starts its own ranks. Under torchrun (on several nodes, say) torchrun's ranks are used instead. A benchmark is a
module of this package that has the three names of `Bench` and is listed in BENCHES.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Protocol, cast

from ddp_agent.distributed.process import die_with_parent, leave
from ddp_agent.distributed.torchrun_env import Place

if __name__ == "__main__":
    # Before torch is imported: all ranks share this machine's cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if Place.read() is not None:
        die_with_parent()

from rich.console import Console

from benchmarks.arguments import at_least, new_file
from benchmarks.outcome import Outcome, write
from ddp_agent.distributed import process_group as runtime
from ddp_agent.distributed.process_group import Runtime

BENCHES = ("sync", "step", "overlap", "diagnostics", "checkpoint", "peers")


class Bench(Protocol):
    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def measure(self, arguments: argparse.Namespace, ranks: Runtime) -> Outcome | Iterable[Outcome]:
        """Every rank calls it, and runs through what it returns; what rank 0 gets is shown as it comes."""
        ...


def main(typed: Sequence[str]) -> int:
    arguments = _parser().parse_args(typed)
    if Place.read() is None:
        return _under_torchrun(arguments.ranks or _one_a_gpu(arguments.device), typed)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with runtime.start(arguments.device, job="bench") as ranks:
        found = _bench(arguments.bench).measure(arguments, ranks)
        outcomes = []
        for outcome in [found] if isinstance(found, Outcome) else found:
            outcomes.append(outcome)
            if ranks.rank == 0:
                console.print(outcome.table())
    if ranks.rank == 0 and arguments.json:
        write(outcomes, arguments.json)
    return 0


def _one_a_gpu(device: str) -> int:
    import torch

    return (torch.cuda.device_count() if device == "auto" else 0) or 2


def _under_torchrun(ranks: int, typed: Sequence[str]) -> int:
    """In this process, which has imported torch already."""
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
        one.add_argument("--ranks", type=at_least(2), default=2, help="how many to start on this machine (2)")
        one.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: GPUs if there are any")
        one.add_argument("--json", type=new_file, metavar="FILE", help="also write the numbers there")
        bench.add_arguments(one)
    return parser


def _bench(name: str) -> Bench:
    return cast(Bench, import_module(f"benchmarks.{name}"))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
