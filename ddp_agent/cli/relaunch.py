"""`python train.py …`: check the configuration, then become the torchrun of the same command."""

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ddp_agent.cli.composition import NPROC_PER_NODE, RUN_DIR, Check, Configs, LaunchContext
from ddp_agent.cli.replicas import world_size as replicas_of
from ddp_agent.errors import ConfigError, RefusedError
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.outputs.run_status import conclude

ON_NODES = "DDP_AGENT_ON_NODES"  # a command that runs the command behind it on every node, with PET_NODE_RANK set
NODES, NODE, ADDRESS = "PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR"  # torchrun's defaults for its flags
RANKS_ON_CPU = 2
MOST_NODES = 10_000
GPU_DEVICES = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")  # below /dev: of NVIDIA, of WSL, of AMD
MOST_RANKS = 1024  # on one machine: a wrong number of processes takes it down
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")  # the last two: near a job's time limit
PEER_FAILED, PREEMPTED = 4, 75
EXPLAINED = (2, 3, 4, 5, PREEMPTED)  # exit codes of ranks that have printed why they ended


def run(
    configs: Configs, check: Check, program: Sequence[str], arguments: Sequence[str], overrides: Sequence[str]
) -> int:
    """Check, then train under torchrun. Return its exit code. Raise RefusedError before anything is started.

    `program` is what the interpreter runs: a script, or -m and a module. `arguments` are what it was given.
    """
    try:
        composed = configs.compose(overrides)
        context = composed.checked(check, partial(_ranks, announced=not composed.problems))
    except RefusedError as refusal:
        _record_for_sweep(str(refusal))
        raise
    if on_nodes := os.environ.pop(ON_NODES, None):
        sys.stdout.flush()
        command = [*shlex.split(on_nodes), sys.executable, *program, *arguments]
        os.execvp(command[0], command)
    return _torchrun(context, [*program, *arguments])


def _ranks(cfg: Mapping[str, Any], *, announced: bool) -> int:
    """Return the number of ranks. Print it before the seconds that the import of torch takes."""
    count = _nproc_per_node(cfg) * _nodes()
    if announced:
        print(f"starting {count} rank{'s' * (count != 1)} …", flush=True)
    return count


def _nproc_per_node(cfg: Mapping[str, Any]) -> int:
    replicas_of(cfg, None)
    wanted = cfg.get("nproc_per_node") or os.environ.get(NPROC_PER_NODE) or _of_torchrun() or _gpus(cfg) or RANKS_ON_CPU
    try:
        count = int(wanted)
    except (ValueError, TypeError, OverflowError):
        count = 0
    if not 1 <= count <= MOST_RANKS:
        raise ConfigError(f"nproc_per_node: found {wanted!r}, expected an integer >= 1 and <= {MOST_RANKS}")
    return count


def _of_torchrun() -> str:
    """Return the number of ranks that torchrun's own variable gives; empty for auto, gpu and cpu."""
    ranks = os.environ.get("PET_NPROC_PER_NODE", "")
    return ranks if ranks.isdecimal() else ""


def _nodes() -> int:
    """Return the number of nodes. Raise ConfigError if this node would train without the others."""
    count = os.environ.get(NODES) or "1"
    if not (count.isascii() and count.isdecimal() and 1 <= int(count[:6]) <= MOST_NODES):
        raise ConfigError(
            f"{NODES}: found {count[:80]!r}, expected an integer >= 1; for a number of nodes that may change start "
            "torchrun itself, as launch/multinode.sh does"
        )
    nodes, node = int(count), os.environ.get(NODE) or ""
    if ON_NODES not in os.environ and not os.environ.get("PET_RDZV_ENDPOINT"):
        wanted = [NODE, ADDRESS] if nodes > 1 else []
        if absent := [name for name in wanted if not os.environ.get(name)]:
            raise ConfigError(
                f"{', '.join(absent)}: missing beside {NODES}={nodes}, so the nodes cannot find each other; expected "
                f"{NODE}=0 to {nodes - 1} and {ADDRESS}=<address of node 0>, or {NODES} unset"
            )
        if node and int(node) >= nodes:
            raise ConfigError(f"{NODE}: found {node} beside {NODES}={nodes}, expected a number below it")
    return nodes


def refuse_sweep_on_every_node(program: str) -> None:
    """Raise ConfigError where each of several nodes was started with the same sweep."""
    if ON_NODES not in os.environ and (nodes := _nodes()) > 1:
        raise ConfigError(
            f"-m: found {NODES}={nodes}, but a sweep is driven from one node; sweep on one node with\n"
            f"  env -u {NODES} {program} -m …\nor start each job on all nodes, without -m"
        )


def _gpus(cfg: Mapping[str, Any]) -> int:
    if cfg.get("device") == "cpu" or (sys.platform == "linux" and not _has(GPU_DEVICES)):
        return 0  # without the seconds that the import of torch takes
    import torch

    return torch.cuda.device_count()


def _torchrun(context: LaunchContext, command: Sequence[str]) -> int:
    """Run torchrun in this process: a second interpreter would import torch again, and hide which rank failed how."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    from ddp_agent.distributed import loopback, run_secret

    nodes = _nodes()
    rendezvous, store = [], None
    if nodes == 1:  # the nodes of several would make different secrets
        run_secret.ensure()
        host, store = loopback.open_store()
        rendezvous = ["--rdzv-backend=static", f"--master-addr={host}", f"--master-port={store.port}"]
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"  # torchrun would do it, with a warning
    files = RunFiles(context.run_dir)
    earlier = files.read_status()
    try:
        with _quiet_torchrun() as noise:
            torchrun(
                [
                    *rendezvous,
                    f"--signals-to-handle={','.join(_signals())}",
                    f"--nproc_per_node={context.world_size // nodes}",
                    *command,
                ]
            )
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode not in EXPLAINED:
            noise.show()
            print(failed, file=sys.stderr)
        conclude(context.run_dir, f"rank {rank} ended with {_ending(first.exitcode)}", rank, earlier=earlier)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as stopped:  # the ranks have ended; the status says whether everything was saved
        name = signal.Signals(stopped.sigval).name
        conclude(context.run_dir, f"{name}: stopped before it could save", earlier=earlier)
        ended = {"preempted": PREEMPTED, "failed": PEER_FAILED}
        state = files.read_status()
        return ended.get(state.get("status", "") if state != earlier else "", 128 + stopped.sigval)
    return 0


def _has(devices: Iterable[str]) -> bool:
    return any(any(Path("/dev").glob(pattern)) for pattern in devices)


def _signals() -> list[str]:
    """Return the signals that torchrun hands on to its ranks. One that is ignored stays so: `nohup` needs it."""
    return [name for name in SIGNALS if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN]


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


class _Kept(logging.Handler):
    """Handler that keeps records until they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def show(self) -> None:
        """Print the records."""
        for record in self._records:
            print(self.format(record), file=sys.stderr)


@contextmanager
def _quiet_torchrun() -> Iterator[_Kept]:
    """Keep back what torchrun logs, unless it is asked for: under a rank's own message it would only confuse."""
    log, kept = logging.getLogger("torch.distributed.elastic"), _Kept()
    log.propagate = False
    log.addHandler(kept)
    try:
        yield kept
    finally:
        log.removeHandler(kept)
        log.propagate = True


def _record_for_sweep(reason: str) -> None:
    if os.environ.get(RUN_DIR):
        with RunDirectory(Path(os.environ[RUN_DIR]), restart=True) as directory:
            directory.write_status("failed", reason)
