"""One replica: a torchrun with one rank, in this process. It ends when the process that started it ends."""

import sys

from ddp_agent.distributed.process import die_with_parent


def main(arguments: list[str]) -> int:
    """Run torchrun with one rank. Return the rank's exit code; the rank itself has printed why it failed.

    `arguments`: a script, or -m and a module, then the arguments for it.
    """
    die_with_parent()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    from ddp_agent.distributed import loopback

    host, store = loopback.open_store()  # torchrun --standalone would listen on every interface
    rendezvous = ["--rdzv-backend=static", f"--master-addr={host}", f"--master-port={store.port}"]
    try:
        torchrun([*rendezvous, "--nproc_per_node=1", *arguments])
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
