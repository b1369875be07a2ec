"""The command `python -m ddp_agent.elastic`, which launch/elastic.sh starts."""

import argparse
import os
import re
import sys
from pathlib import Path

from ddp_agent.cli.composition import run_time
from ddp_agent.cli.program import MODULE
from ddp_agent.distributed.loopback import ADDRESSES, split
from ddp_agent.elastic.supervisor import Supervisor
from ddp_agent.errors import RefusedError, UnreachableError
from ddp_agent.outputs.files import disk_errors_explained
from ddp_agent.outputs.streams import protect

LONGEST_S = 1e6  # 12 days
EXAMPLES = """examples:
  launch/elastic.sh --replicas 4 -- sync=diloco sync.period=50 max_steps=5000
  launch/elastic.sh --replicas 4 --dir outputs/night --max-restarts 10 -- sync=local_sgd resume=…
two machines on a private network, with DDP_AGENT_SECRET set to the same value and the coordinator on 10.0.0.1:
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
    parser.add_argument("--replicas", type=_count, required=True, help="how many in all, each a torchrun with one rank")
    parser.add_argument("--only", help="numbers of the replicas to start here (default: all)")
    parser.add_argument("--max-restarts", type=_restarts, default=3, help="restarts per lost replica (default: 3)")
    parser.add_argument("--dir", type=Path, help="folder of the run directories (default: outputs/<time>)")
    parser.add_argument(
        "--listen", type=_address, default="127.0.0.1:0", help="where a new coordinator listens (default: loopback)"
    )
    parser.add_argument("--coordinator", type=_address, help="HOST:PORT of one that runs already")
    parser.add_argument(
        "--keeper", type=_address, dest="coordinator", help=argparse.SUPPRESS
    )  # the option's name until version 0.1
    parser.add_argument("--lost-after-s", type=_seconds, default=5.0, help="without a heartbeat (default: 5)")
    parser.add_argument("--patience-s", type=_seconds, default=600.0, help="for a live but late replica (default: 600)")
    parser.add_argument("train", nargs="*", help="arguments of train.py, behind --")
    options = parser.parse_args(arguments)
    named = options.only.split(",") if options.only else map(str, range(options.replicas))
    options.numbers = [int(number) if re.fullmatch("[0-9]{1,5}", number) else -1 for number in named]
    if not all(0 <= number < options.replicas for number in options.numbers):
        parser.error(f"--only: found {options.only!r}, expected numbers from 0 to {options.replicas - 1}")
    options.address = split(options.listen)
    return options


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected at least 1 and at most 9999")
    return int(text)


def _restarts(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer >= 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected seconds, such as 5")
    return value


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected HOST:PORT, such as 10.0.0.1:29600")
    return text


def main(arguments: list[str]) -> int:
    """Start a coordinator, unless one is named, and the replicas. Return the exit code."""
    options = parsed(arguments)
    # The lighthouse writes several lines per round to descriptor 2, and no option stops that.
    protect(stderr=os.dup(2))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    coordinator = None
    if options.coordinator is None:
        from ddp_agent.distributed import run_secret
        from ddp_agent.elastic.coordinator import Coordinator

        host, port = options.address
        if host in ADDRESSES:  # launchers on other machines would have another secret
            run_secret.ensure()
        try:
            coordinator = Coordinator(host, port, lost_after_s=options.lost_after_s, patience_s=options.patience_s)
        except ImportError as error:
            print(f"{error}; replicas need torchft: pip install 'ddp_agent[elastic]'", file=sys.stderr)
            return 2
        except UnreachableError as refusal:
            print(f"--listen {refusal}", file=sys.stderr)
            return refusal.exit_code
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
