"""`python train.py …`: refuses what is wrong before anything starts, then is the torchrun of the same command."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddp_agent.errors import ConfigError, RefusedError
from ddp_agent.launch.composition import NPROC_PER_NODE, RUN_DIR, Check, Configs, LaunchContext
from ddp_agent.run_directory import RunDirectory

ON_NODES = "DDP_AGENT_ON_NODES"  # a command: it runs the one behind it on every node, with PET_NODE_RANK and so on
NODES = "PET_NNODES"  # torchrun reads PET_… where its flags are not given
RANKS_ON_CPU = 2
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"  # Slurm's, and submitit's, before a job's time is over
PEER_FAILED, PREEMPTED = 4, 75
SAID_BY_RANK = (2, 3, 4, 5, PREEMPTED)  # exit codes of ranks that have told the user why


def run(configs: Configs, check: Check, script: Path, arguments: Sequence[str], overrides: Sequence[str]) -> int:
    try:
        context = configs.compose(overrides).checked(check, lambda cfg: _nproc_per_node(cfg) * _nodes())
    except RefusedError as refusal:
        _tell_sweep(str(refusal))
        raise
    if on_nodes := os.environ.pop(ON_NODES, None):
        sys.stdout.flush()
        command = [*shlex.split(on_nodes), sys.executable, str(script), *arguments]
        os.execvp(command[0], command)
    return _torchrun(context, script, arguments)


def _nproc_per_node(cfg: Mapping[str, Any]) -> int:
    wanted = cfg.get("nproc_per_node") or os.environ.get(NPROC_PER_NODE) or _gpus(cfg) or RANKS_ON_CPU
    try:
        count = int(wanted)
    except ValueError:
        count = 0
    if count < 1:
        raise ConfigError(f"nproc_per_node: found {wanted!r}, expected an integer >= 1")
    return count


def _nodes() -> int:
    found = os.environ.get(NODES, "1")
    if not found.isdecimal() or int(found) < 1:
        raise ConfigError(f"{NODES}: found {found!r}, expected an integer >= 1")
    return int(found)


def _gpus(cfg: Mapping[str, Any]) -> int:
    if cfg.get("device") == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def _torchrun(context: LaunchContext, script: Path, arguments: Sequence[str]) -> int:
    """In this process: a second interpreter would import torch once more, and hide which rank failed with what."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    nodes = _nodes()
    rendezvous = ["--standalone"] if nodes == 1 else []
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun would do it too, with a warning
    try:
        torchrun(
            [
                *rendezvous,
                f"--signals-to-handle={SIGNALS}",
                f"--nproc_per_node={context.world_size // nodes}",
                str(script),
                *arguments,
            ]
        )
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        if first.exitcode not in SAID_BY_RANK:
            print(failed, file=sys.stderr)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as stopped:  # the ranks have ended: with everything saved? or was it they who sent it?
        ended = {"preempted": PREEMPTED, "failed": PEER_FAILED}
        return ended.get(read_status(context.run_dir).get("status", ""), 128 + stopped.sigval)
    return 0


def read_status(run_dir: Path) -> dict[str, Any]:
    try:
        status = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _tell_sweep(reason: str) -> None:
    if RUN_DIR in os.environ:
        with RunDirectory(Path(os.environ[RUN_DIR]), restart=True) as directory:
            directory.write_status("failed", reason)
