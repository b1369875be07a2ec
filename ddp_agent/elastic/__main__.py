"""The command `python -m ddp_agent.elastic`, which launch/elastic.sh starts."""

import argparse
import os
import sys
from pathlib import Path

from ddp_agent.cli.composition import run_time
from ddp_agent.cli.program import MODULE
from ddp_agent.elastic.supervisor import Supervisor
from ddp_agent.errors import RefusedError
from ddp_agent.outputs.files import disk_errors_explained
from ddp_agent.outputs.streams import protect

EXAMPLES = """examples:
  launch/elastic.sh --replicas 4 -- sync=diloco sync.period=50 max_steps=5000
  launch/elastic.sh --replicas 4 --dir outputs/night --max-restarts 10 -- sync=local_sgd resume=…
two machines, with the coordinator on 10.0.0.1 (on a private network: coordinator and gloo listen without a password):
  GLOO_SOCKET_IFNAME=eth0 launch/elastic.sh --replicas 4 --only 0,1 --listen 10.0.0.1:29600 -- sync=diloco
  GLOO_SOCKET_IFNAME=eth0 launch/elastic.sh --replicas 4 --only 2,3 --coordinator 10.0.0.1:29600 -- sync=diloco
"""


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the options. Exits with code 2 and a message when one is wrong."""
    parser = argparse.ArgumentParser(
        prog="launch/elastic.sh",
        description="Start replicas that train together and continue without those that are lost.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--replicas", type=int, required=True, help="how many in all, each a torchrun with one rank")
    parser.add_argument("--only", help="numbers of the replicas to start here (default: all)")
    parser.add_argument("--max-restarts", type=int, default=3, help="restarts per lost replica (default: 3)")
    parser.add_argument("--dir", type=Path, help="folder of the run directories (default: outputs/<time>)")
    parser.add_argument("--listen", default="127.0.0.1:0", help="where a new coordinator listens (default: loopback)")
    parser.add_argument("--coordinator", help="HOST:PORT of one that runs already")
    parser.add_argument("--keeper", dest="coordinator", help=argparse.SUPPRESS)  # the option's name until version 0.1
    parser.add_argument("--lost-after-s", type=float, default=5.0, help="without a heartbeat (default: 5)")
    parser.add_argument("--patience-s", type=float, default=600.0, help="for a live but late replica (default: 600)")
    parser.add_argument("train", nargs="*", help="arguments of train.py, behind --")
    options = parser.parse_args(arguments)
    if options.replicas < 1:
        parser.error(f"--replicas: found {options.replicas}, expected at least 1")
    options.numbers = [int(it) for it in options.only.split(",")] if options.only else list(range(options.replicas))
    if not all(0 <= number < options.replicas for number in options.numbers):
        parser.error(f"--only: found {options.only}, expected numbers from 0 to {options.replicas - 1}")
    return options


def main(arguments: list[str]) -> int:
    """Start a coordinator, unless one is named, and the replicas. Return the exit code."""
    options = parsed(arguments)
    # The lighthouse writes several lines per round to descriptor 2, and no option stops that.
    protect(stderr=os.dup(2))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    coordinator = None
    if options.coordinator is None:
        from ddp_agent.elastic.coordinator import Coordinator

        host, _, port = options.listen.rpartition(":")
        try:
            coordinator = Coordinator(host, int(port), lost_after_s=options.lost_after_s, patience_s=options.patience_s)
        except ImportError as error:
            print(f"{error}; replicas need torchft: pip install 'ddp_agent[elastic]'", file=sys.stderr)
            return 2
        print(f"coordinator at {coordinator.address}", file=sys.stderr, flush=True)
    supervisor = Supervisor(
        program=MODULE,
        arguments=options.train,
        folder=options.dir or Path("outputs") / run_time(),
        numbers=options.numbers,
        count=options.replicas,
        coordinator=coordinator.address if coordinator else options.coordinator,
        max_restarts=options.max_restarts,
    )
    try:
        with disk_errors_explained():
            return supervisor.run()
    except RefusedError as refusal:
        print(refusal, file=sys.stderr)
        return refusal.exit_code
    finally:
        if coordinator:
            coordinator.close()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # threads of the lighthouse would keep the interpreter from ending
