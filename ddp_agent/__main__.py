"""`ddp-agent`, also `python -m ddp_agent`: the package's commands under one name. Imports no torch by itself."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from ddp_agent import __version__
from ddp_agent.outputs.streams import run_command

if TYPE_CHECKING:
    from ddp_agent.cli import LaunchContext
    from ddp_agent.outputs.run_directory import RunDirectory

COMMANDS = {
    "train": "train on every rank; takes the arguments of train.py, such as sync=diloco",
    "sweep": "train once per combination of key=a,b (the same as train -m)",
    "report": "compare finished runs",
    "plan": "predict what each mode costs on other links and numbers of ranks",
    "checkpoint": "list, verify or prune a run's checkpoints",
    "netlab": "run a command on several nodes of this machine, joined by slow links",
}


def check(context: "LaunchContext") -> None:
    """Raise ConfigError for a wrong configuration. Starts nothing."""
    from ddp_agent.training.settings import parse

    parse(context.cfg, choices=context.choices, world_size=context.world_size)


def train(context: "LaunchContext", directory: "RunDirectory") -> None:
    """Run one rank of a training."""
    from ddp_agent.run import run

    run(context, directory)


def main() -> int:
    """Run the command that was typed. Return its exit code; 2 for a wrong command line."""
    command, arguments = _parsed(sys.argv[1:])
    if command in ("train", "sweep"):
        return _train(command, arguments)
    if command == "netlab":
        from ddp_agent.netlab.command import main as netlab

        return netlab(arguments, "ddp-agent netlab")
    return run_command(lambda: import_module(f"ddp_agent.{command}.__main__").main(arguments))


def _parsed(typed: Sequence[str]) -> tuple[str, list[str]]:
    parser = argparse.ArgumentParser(
        prog="ddp-agent",
        description="Train a PyTorch model with a choice of how the ranks synchronise, and compare the choices.",
        epilog="\n".join(["commands:", *(f"  {name:<11} {text}" for name, text in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ddp-agent {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below; each has --help")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the command's own")
    parsed = parser.parse_args(typed)
    return parsed.command, parsed.arguments


def _train(command: str, arguments: Sequence[str]) -> int:
    """Run train.py's code with `arguments`, and leave the process."""
    # Before torch: ranks share the cores of a machine.
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"
    from ddp_agent.cli import leave
    from ddp_agent.cli import main as launch
    from ddp_agent.cli.program import Program
    from ddp_agent.config.shipped import conf_folder

    program = Program.command()
    sys.argv[1:] = ["-m", *arguments] if command == "sweep" else arguments  # where Hydra reads it
    leave(launch(train, check=check, conf=conf_folder(), program=program))


if __name__ == "__main__":
    sys.exit(main())
