"""Several nodes on one machine, joined by links of a given rate.

  python launch/netlab.py --nodes 4 --rate 100mbit -- train.py sync=diloco
  python launch/netlab.py --nodes 2 --rate 1gbit -- train.py -m sync=allreduce,local_sgd seed=0,1
  ddp-agent netlab --nodes 4 --rate 100mbit -- ddp-agent train sync=diloco

The words after -- are a Python script and its arguments, as you would start it with `python`. The script has to let
ddp_agent.cli start its ranks, as train.py does. A run starts one torchrun per node. A sweep runs its jobs one after
the other. summary.json then has link_bytes: the bytes that the kernel saw rank 0's node send while it trained. Ctrl-C
and SIGTERM reach the run as they would without nodes.

Needs Linux, ip and tc (package iproute2), and root or the right to make user namespaces. The nodes reach each other
and nothing else, so the data must be on the disk. PYTHON chooses the interpreter (default: the one that runs this).
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ddp_agent.netlab import lab
from ddp_agent.netlab.job import on_nodes
from ddp_agent.netlab.processes import RefusedError, exit_code, hold_signals, listen_to_signals, on_signals

EXIT_REFUSED = 2

MAX_NODES = 254  # in a network whose addresses differ in the last byte
RATES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
MIN_RATE, MAX_RATE = 8 * 10**3, 100 * 10**9  # bits/s; above it the token bucket of tc rounds its burst to nothing


def main(typed: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command after -- inside the emulated network. Return its exit code, or 2 for a refusal.

    `typed` defaults to `sys.argv[1:]`, `program` (shown in the usage) to the script.
    The process forks and enters namespaces, so call it before threads are started.
    """
    typed = sys.argv[1:] if typed is None else typed
    if typed[:1] == [lab.ON_NODES_OPTION]:
        hold_signals()
        return on_nodes([int(descriptor) for descriptor in typed[1].split(",")], typed[2:])
    try:
        arguments = parse(typed, program)
        arguments.command = check(arguments.command)
        hold_signals()
        lab.leave_the_machine()
    except RefusedError as refusal:
        listen_to_signals()  # the caller lives on and must not stay deaf to Ctrl-C
        print(f"netlab: {refusal}", file=sys.stderr)
        return EXIT_REFUSED
    if (first := os.fork()) == 0:
        return lab.first_process(arguments, EXIT_REFUSED)
    on_signals(lambda number: os.kill(first, number))
    return exit_code(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))


class Parser(argparse.ArgumentParser):
    """Argument parser that raises RefusedError instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        """Raise RefusedError with argparse's own text."""
        raise RefusedError(message)


def parse(typed: Sequence[str], program: str | None = None) -> argparse.Namespace:
    """Return `nodes`, `rate` (bits/s), `nproc_per_node` and `command`. Raise RefusedError for a wrong argument."""
    parser = Parser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=node_count, required=True, metavar="N", help=f"2 to {MAX_NODES}")
    parser.add_argument("--rate", type=bits_per_s, required=True, help="rate of each link, each way: 100mbit, 1.5gbit")
    parser.add_argument("--nproc-per-node", type=rank_count, default=1, metavar="N", help="ranks per node (default: 1)")
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').strip()} -- train.py [train.py's arguments]"
    split = typed.index("--") if "--" in typed else len(typed)
    arguments = parser.parse_args(typed[:split])
    arguments.command = list(typed[split + 1 :])
    return arguments


def node_count(text: str) -> int:
    """Return the number of nodes that `text` gives."""
    if not text.isdecimal() or not 2 <= int(text) <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected 2 to {MAX_NODES}")
    return int(text)


def rank_count(text: str) -> int:
    """Return the number of ranks per node that `text` gives."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer >= 1")
    return int(text)


def bits_per_s(text: str) -> int:
    """Return the rate in bits/s that `text` gives in the notation of tc: `100mbit`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)bit", text.lower())
    rate = float(match[1]) * RATES[match[2]] if match else 0.0  # infinite for 400 digits
    if not MIN_RATE <= rate <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected 8kbit to 100gbit, such as 100mbit")
    return round(rate)


def check(command: Sequence[str]) -> list[str]:
    """Return `command` with the path of its script. Raise RefusedError for what can be seen before anything is made."""
    if sys.platform != "linux":
        raise RefusedError(f"needs Linux's network namespaces, found {sys.platform}")
    if not command:
        raise RefusedError("no command: expected -- and a script with its arguments, such as -- train.py sync=diloco")
    script = command[0] if Path(command[0]).is_file() else installed_script(command[0])
    if script is None:
        raise RefusedError(f"{command[0]}: no such file; expected a Python script behind --, such as train.py")
    if lab.LINK in os.environ or lab.ON_NODES in os.environ:
        raise RefusedError("already inside of a netlab: start the run itself, without netlab.py")
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # the PATH of some users has only /usr/bin
    missing = [tool for tool in ("ip", "tc", "mount", "umount") if shutil.which(tool) is None]
    if missing:
        raise RefusedError(f"missing: {', '.join(missing)}; install iproute2 and util-linux")
    return [script, *command[1:]]


def installed_script(name: str) -> str | None:
    """Return the path of a Python script on PATH, such as `ddp-agent`; None where there is none of this name."""
    path = shutil.which(name)
    if path is None:
        return None
    with open(path, "rb") as file:
        first = file.readline(1024)
    return path if first.startswith(b"#!") and b"python" in first else None
