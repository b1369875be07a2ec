"""One rank that torchrun started: agree on the run, check it, train, and report a failure once for all ranks."""

import hashlib
import json
import logging
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, record

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
from ddp_agent.config.fields import expanded
from ddp_agent.config.redaction import scrubbed
from ddp_agent.distributed.process import TorchrunEnvironment
from ddp_agent.distributed.rendezvous import Rendezvous, connect
from ddp_agent.distributed.run_secret import SignedStore
from ddp_agent.errors import ConfigError, LostDirectoryError, NoProgressError, PreemptedError, RefusedError
from ddp_agent.outputs.files import disk_errors_explained
from ddp_agent.outputs.log import log_to_file
from ddp_agent.outputs.restarts import stop_torchrun
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.run_status import State

_log = logging.getLogger(__name__)

# How long a rank waits for rank 0 to print an error that both raised, before it prints the error itself.
PATIENCE_S = 5.0
PROBE_S = 1.0


class _ErrorFile(ErrorHandler):
    """The file from which torchrun prints the error of a rank, without secrets."""

    def record_exception(self, e: BaseException) -> None:
        """Write the error as torch does."""
        if path := self._get_error_file_path():
            text, trace = scrubbed(f"{type(e).__name__}: {e}"), scrubbed("".join(traceback.format_exception(e)))
            details = {"py_callstack": trace, "timestamp": str(int(time.time()))}
            self._write_error_file(path, json.dumps({"message": {"message": text, "extraInfo": details}}))


@partial(
    record, error_handler=_ErrorFile()
)  # torchrun prints the number and the traceback of the rank that failed first
def run(configs: Configs, check: Check, work: Work, overrides: Sequence[str]) -> int:
    """Run one rank. Return its exit code; a refusal was printed once for all ranks."""
    rendezvous = connect()
    try:
        os.environ[RUN_TIME] = rendezvous.agree("run_time", run_time())
        composed = configs.compose(overrides)
        context = composed.checked(check, lambda cfg: _world_size(cfg, rendezvous.environment), rendezvous.attempt)
        with disk_errors_explained(), _claimed(rendezvous, composed, context) as directory:
            return _work(work, context, directory)
    except RefusedError as refusal:
        print_once(rendezvous, str(refusal), refusal.rank)
        if isinstance(refusal, NoProgressError | LostDirectoryError) and rendezvous.environment.local_rank == 0:
            stop_torchrun()
        return refusal.exit_code


def _world_size(cfg: Mapping[str, Any], environment: TorchrunEnvironment) -> int:
    if replicas := replicas_of(cfg, environment):
        return replicas
    wanted = cfg.get("nproc_per_node")
    if isinstance(wanted, int) and wanted != environment.local_world_size:
        raise ConfigError(
            f"nproc_per_node: found {wanted} under a torchrun that started {environment.local_world_size} ranks on "
            f"this node, expected {environment.local_world_size}, or null: torchrun's --nproc_per_node decides"
        )
    return environment.world_size


def _claimed(rendezvous: Rendezvous, composed: Composed, context: LaunchContext) -> RunDirectory:
    """Return the run directory after rank 0 has claimed it. Where rank 0 is refused, torchrun ends the other ranks."""
    claimed = f"claimed/{context.attempt}"
    if rendezvous.environment.rank != 0:
        rendezvous.from_rank_0(claimed, str)
        return RunDirectory(context.run_dir, rank=rendezvous.environment.rank)
    resume = context.cfg.get("resume")
    continues = context.attempt > 0 or (resume and expanded(resume).absolute() == context.run_dir)
    directory = RunDirectory(context.run_dir, restart=bool(continues))
    if not os.environ.get(RUN_DIR):  # else the sweep has saved them
        composed.save(directory.path)
    rendezvous.values.set(claimed, "yes")
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
    """Print `message` once for all ranks that report it, and return after it was printed.

    The line names `of_rank`; default: the rank that prints. torchrun ends all ranks once one has exited, so the ranks
    that do not print have to wait. The store lives as long as torchrun, so a restart does not repeat the message.
    """
    rank, store = rendezvous.environment.rank, rendezvous.values
    message, named = scrubbed(message), rank or None if of_rank is None else of_rank
    log_to_file(_log, message)
    text = message if named is None else f"rank {named}: {message}"
    if not _store_answers(store):
        print(text, file=sys.stderr, flush=True)
        return
    key = f"printed/{hashlib.sha256(message.encode()).hexdigest()}"
    with suppress(DistError):  # the store is gone, and the rank that could have printed with it
        # Rank 0 is not waited for where the message is about itself: it cannot print it.
        if rank != 0 and _was_printed(store, key, 0 if of_rank == 0 else PATIENCE_S):
            return
        if store.first(f"{key}/by", own := uuid.uuid4().hex, str) != own:
            _was_printed(store, key, PATIENCE_S)
            return
    print(text, file=sys.stderr, flush=True)
    with suppress(DistError):
        store.set(key, "yes")


def _store_answers(store: SignedStore) -> bool:
    """Return False within `PROBE_S` where the link to the store is down; a call to the store would take minutes."""
    probe = threading.Thread(target=_probe, args=(store,), daemon=True)
    probe.start()
    probe.join(PROBE_S)
    return not probe.is_alive()


def _probe(store: SignedStore) -> None:
    with suppress(DistError):
        store.get("printed", str)


def _was_printed(store: SignedStore, key: str, patience_s: float) -> bool:
    with suppress(TimeoutError):
        return bool(store.wait(key, str, patience_s))
    return False
