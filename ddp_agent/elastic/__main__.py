"""`python -m ddp_agent.elastic`: what launch/elastic.sh starts."""

import argparse
import os
import sys
from pathlib import Path

from ddp_agent.cli.composition import run_time
from ddp_agent.cli.program import MODULE
from ddp_agent.elastic.supervisor import Supervisor

EXAMPLES = """examples:
  launch/elastic.sh --replicas 4 -- sync=diloco sync.period=50 max_steps=5000
  launch/elastic.sh --replicas 4 --dir outputs/night --max-restarts 10 -- sync=local_sgd resume=…
two machines, of which 10.0.0.1 keeps (a private network: keeper and gloo listen without authentication):
  GLOO_SOCKET_IFNAME=eth0 launch/elastic.sh --replicas 4 --only 0,1 --listen 10.0.0.1:29600 -- sync=diloco
  GLOO_SOCKET_IFNAME=eth0 launch/elastic.sh --replicas 4 --only 2,3 --keeper 10.0.0.1:29600 -- sync=diloco
"""


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/elastic.sh",
        description="Replicas that train together and go on without those that are lost.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--replicas", type=int, required=True, help="in all, each a torchrun with one rank")
    parser.add_argument("--only", help="the numbers of those to start here (default: all)")
    parser.add_argument("--max-restarts", type=int, default=3, help="of each that is lost (default: 3)")
    parser.add_argument("--dir", type=Path, help="run directories go there (default: outputs/<time>)")
    parser.add_argument("--listen", default="127.0.0.1:0", help="where the keeper listens (default: a loopback port)")
    parser.add_argument("--keeper", help="HOST:PORT of one that is there already")
    parser.add_argument("--lost-after-s", type=float, default=5.0, help="without a sign of life (default: 5)")
    parser.add_argument("--patience-s", type=float, default=600.0, help="for one that lives but is late (default: 600)")
    parser.add_argument("train", nargs="*", help="train.py's arguments, behind --")
    told = parser.parse_args(arguments)
    if told.replicas < 1:
        parser.error(f"--replicas: found {told.replicas}, expected at least 1")
    told.numbers = [int(it) for it in told.only.split(",")] if told.only else list(range(told.replicas))
    if not all(0 <= number < told.replicas for number in told.numbers):
        parser.error(f"--only: found {told.only}, expected numbers from 0 to {told.replicas - 1}")
    return told


def main(arguments: list[str]) -> int:
    told = parsed(arguments)
    _silence_the_lighthouse()
    keeper = None
    if told.keeper is None:
        from ddp_agent.elastic.coordinator import Keeper

        host, _, port = told.listen.rpartition(":")
        try:
            keeper = Keeper.start(host, int(port), lost_after_s=told.lost_after_s, patience_s=told.patience_s)
        except ImportError as error:
            print(f"{error}; replicas need torchft: pip install 'ddp_agent[elastic]'", file=sys.stderr)
            return 2
        print(f"keeper at {keeper.address}", file=sys.stderr, flush=True)
    supervisor = Supervisor(
        program=MODULE,
        arguments=told.train,
        folder=told.dir or Path("outputs") / run_time(),
        numbers=told.numbers,
        count=told.replicas,
        keeper=keeper.address if keeper else told.keeper,
        max_restarts=told.max_restarts,
    )
    try:
        return supervisor.run()
    finally:
        if keeper:
            keeper.close()


def _silence_the_lighthouse() -> None:
    """It writes some lines a meeting to descriptor 2, whatever it is told."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # threads of the lighthouse would keep the interpreter from ending
