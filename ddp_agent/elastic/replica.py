"""One replica: a torchrun with one rank, in this process, that ends when whoever started it does."""

import sys

from ddp_agent.distributed.process import die_with_parent


def main(arguments: list[str]) -> int:
    """`arguments`: a script and its own. The rank's exit code; what it said itself is not said again."""
    die_with_parent()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(["--standalone", "--nproc_per_node=1", *arguments])
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
