"""One rank under torchrun."""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import record

from ddp_agent.cli.composition import (
    RUN_DIR,
    RUN_TIME,
    Check,
    Composed,
    Configs,
    LaunchContext,
    Work,
    run_time,
)
from ddp_agent.cli.replicas import world_size as replicas_of
from ddp_agent.config.redaction import scrubbed
from ddp_agent.distributed.c10d import Store
from ddp_agent.distributed.rendezvous import Rendezvous, connect
from ddp_agent.distributed.torchrun_env import Place
from ddp_agent.errors import ConfigError, NoProgressError, PreemptedError, RefusedError
from ddp_agent.outputs.restarts import stop_torchrun
from ddp_agent.outputs.run_directory import RunDirectory, State

# How long a rank waits for rank 0 to say what both found, before it speaks up itself.
PATIENCE_S = 5.0
POLL_S = 0.05
PROBE_S = 1.0


@record  # torchrun prints what the first failing rank left: its number and traceback
def run(configs: Configs, check: Check, work: Work, overrides: Sequence[str]) -> int:
    rendezvous = connect()
    try:
        os.environ[RUN_TIME] = rendezvous.agree("run_time", run_time())
        composed = configs.compose(overrides)
        context = composed.checked(check, lambda cfg: _world_size(cfg, rendezvous.place), rendezvous.attempt)
        with _claimed(rendezvous, composed, context) as directory:
            return _work(work, context, directory)
    except RefusedError as refusal:
        print_once(rendezvous, str(refusal), refusal.rank)
        if isinstance(refusal, NoProgressError) and rendezvous.place.local_rank == 0:
            stop_torchrun()
        return refusal.exit_code


def _world_size(cfg: Mapping[str, Any], place: Place) -> int:
    if replicas := replicas_of(cfg, place):
        return replicas
    wanted = cfg.get("nproc_per_node")
    if isinstance(wanted, int) and wanted != place.local_world_size:
        raise ConfigError(
            f"nproc_per_node: found {wanted} under a torchrun that started {place.local_world_size} ranks on this "
            f"node, expected {place.local_world_size}, or null: torchrun's --nproc_per_node decides"
        )
    return place.world_size


def _claimed(rendezvous: Rendezvous, composed: Composed, context: LaunchContext) -> RunDirectory:
    """Rank 0 claims the run directory; the others wait for it, or for torchrun to end them when it is refused."""
    claimed = f"claimed/{context.attempt}"
    if rendezvous.place.rank != 0:
        rendezvous.store.wait([claimed])
        return RunDirectory(context.run_dir, rank=rendezvous.place.rank)
    resumed = context.cfg.get("resume")
    continues = context.attempt > 0 or (resumed and Path(resumed).absolute() == context.run_dir)
    directory = RunDirectory(context.run_dir, restart=bool(continues))
    if RUN_DIR not in os.environ:  # else the sweep has saved them
        composed.save(directory.path)
    rendezvous.store.set(claimed, "")
    return directory


def _work(work: Work, context: LaunchContext, directory: RunDirectory) -> int:
    try:
        return work(context, directory) or 0
    except RefusedError as refusal:
        state: State = "preempted" if isinstance(refusal, PreemptedError) else "failed"
        directory.write_status(state, str(refusal), refusal.rank, refusal.step)
        raise
    except Exception as error:
        directory.write_status("failed", f"{type(error).__name__}: {error}")
        raise


def print_once(rendezvous: Rendezvous, message: str, of_rank: int | None = None) -> None:
    """Prints what several ranks found as one message, and returns when it is printed. It is news of `of_rank`, or else
    of whoever prints it.

    torchrun ends all ranks once one has exited: whoever stays silent must wait, or nobody speaks. The memory lasts
    as long as torchrun, so a restart does not repeat it.
    """
    rank, store = rendezvous.place.rank, rendezvous.store
    message, named = scrubbed(message), rank or None if of_rank is None else of_rank
    text = message if named is None else f"rank {named}: {message}"
    if not _answers(store):
        print(text, file=sys.stderr, flush=True)
        return
    key = f"said/{hashlib.sha256(message.encode()).hexdigest()}"
    with suppress(DistError):  # the store is gone, and with it whoever could have spoken
        if rank != 0 and _said(store, key, 0 if of_rank == 0 else PATIENCE_S):  # news of rank 0 it cannot tell itself
            return
        if store.add(f"{key}/claims", 1) > 1:
            _said(store, key, PATIENCE_S)
            return
    print(text, file=sys.stderr, flush=True)
    with suppress(DistError):
        store.set(key, "")


def _answers(store: Store) -> bool:
    """Over a link that is down it would not, for minutes."""
    probe = threading.Thread(target=_ask, args=(store,), daemon=True)
    probe.start()
    probe.join(PROBE_S)
    return not probe.is_alive()


def _ask(store: Store) -> None:
    with suppress(DistError):
        store.check(["said"])


def _said(store: Store, key: str, patience_s: float) -> bool:
    """Not by `store.wait`, whose timeout torch reports on the console."""
    deadline = time.monotonic() + patience_s
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
