"""Gloo ranks that outlive a test: a test pays for its maths, not for processes that import torch.

    def mean_of_ranks(value: float) -> float:      # at module level, since the ranks import it by name
        ...

    def test_mean(ranks3: RankPool) -> None:
        assert ranks3.run(mean_of_ranks, 2.0) == [2.0, 2.0, 2.0]

Arguments and results travel by pickle, between our own processes only. Each call gets a process group of
its own, the default dtype and the default seed, so that a test sees nothing of the one before. After a
failure of any kind the processes are replaced (0.2 s), so that one failure does not poison the rest. A test
that *expects* an exception catches it on the rank and returns its message.
"""

import faulthandler
import gc
import multiprocessing
import os
import pickle
import queue
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# torch takes 4 s to import, torch._dynamo, which every optimizer imports, 4 s more, and what a whole run needs 3 s.
PRELOAD = (
    *("torch", "torch.distributed", "torch._dynamo", "torch.utils.tensorboard", "torch.utils.flop_counter", "hydra"),
    *(
        "runs",
        "loops",
        "whole_runs",
        "ddp_agent.cli.rank_process",
        "ddp_agent.data.datasets.digits",
        "ddp_agent.models.mlp",
    ),
    *("PIL.ImageFont", "PIL.PngImagePlugin", "rich._emoji_codes", "tensorboard.plugins.hparams.metadata"),
)
TIMEOUT_S = 60.0
# gloo tells ranks that hang in a collective after the timeout, and their traceback says where: wait for it.
HEADROOM_S = 3.0
# The rank that fails first takes its peers down: time to hear from them too.
AFTERMATH_S = 1.0


class RankError(RuntimeError):
    """A rank raised, died or gave no answer. The message holds every traceback, the first to arrive first."""


@dataclass(frozen=True)
class Call:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    rank: int
    size: int
    store: str
    timeout_s: float


@dataclass(frozen=True)
class Worker:
    process: BaseProcess
    pipe: Connection


def forking(preload: Sequence[str] = PRELOAD) -> ForkServerContext:
    """Return a context whose processes are forks of a server that has imported these modules (milliseconds each).

    The server is a fresh process: nothing of the tests is in it. The first call starts it; it lasts as long as we do.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # it would pass over in silence what it does not find
    try:
        forkserver.ensure_running()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    return context


class RankProcesses:
    """The processes behind every pool of the session: two ranks are the first two of the same four."""

    def __init__(self, preload: Sequence[str] = PRELOAD) -> None:
        self._context = forking(preload)
        self._workers: list[Worker] = []

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def run(self, size: int, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> list[Any]:
        self._start(size)
        with tempfile.TemporaryDirectory(prefix="ranks-") as directory:
            store = os.path.join(directory, "store")
            calls = [pickle.dumps(Call(function, args, rank, size, store, timeout_s)) for rank in range(size)]
            try:
                for worker, call in zip(self._workers, calls, strict=False):
                    worker.pipe.send_bytes(call)
                return _collect(self._workers[:size], timeout_s, Path(directory))
            except BaseException:  # Ctrl-C too: the next call must not meet ranks that are still busy
                self.close()
                raise

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()  # they hold nothing worth saving, and SIGKILL also ends a stopped one
        for worker in self._workers:
            worker.process.join()
            worker.process.close()
            worker.pipe.close()
        self._workers.clear()

    def _start(self, size: int) -> None:
        while len(self._workers) < size:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,), name=f"rank {len(self._workers)}")
            process.start()
            theirs.close()
            self._workers.append(Worker(process, ours))


class RankPool:
    def __init__(self, size: int, processes: RankProcesses) -> None:
        self.size = size
        self._processes = processes

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """Runs `function(*args)` on all ranks at once, as one gloo group. One result a rank, or RankError."""
        return self._processes.run(self.size, function, args, timeout_s)


def _collect(workers: Sequence[Worker], timeout_s: float, directory: Path) -> list[Any]:
    deadline = time.monotonic() + timeout_s + HEADROOM_S
    waiting = {worker.pipe: rank for rank, worker in enumerate(workers)}
    results: dict[int, Any] = {}
    problems: list[str] = []
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            succeeded, value = _receive(workers[rank])
            if succeeded:
                results[rank] = value
            else:
                problems.append(f"rank {rank}: {value}")
                deadline = min(deadline, time.monotonic() + AFTERMATH_S)
    for rank in waiting.values():
        stacks = _stacks(directory, rank)
        where = stacks.read_text() if stacks.exists() else ""
        problems.append(f"rank {rank}: no answer (limit {timeout_s:g} s)\n{where}".rstrip())
    if problems:
        raise RankError("\n".join(problems))
    return [results[rank] for rank in range(len(workers))]


def _receive(worker: Worker) -> tuple[bool, Any]:
    try:
        answer: tuple[bool, Any] = pickle.loads(worker.pipe.recv_bytes())
        return answer
    except EOFError:
        worker.process.join()
        return False, f"died, exit code {worker.process.exitcode}"


def _stacks(directory: Path, rank: int) -> Path:
    """Return the file in which a late rank writes the stacks of its threads."""
    return directory / f"stacks{rank}"


# What follows runs on the ranks.


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test session, which ends the ranks
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, calls), daemon=True).start()
    while True:
        pipe.send_bytes(_answer(calls.get()))


def _listen(pipe: Connection, calls: queue.SimpleQueue[bytes]) -> None:
    """Watch in a thread, so that a busy rank ends too when the test session is gone, however that ended."""
    try:
        while True:
            calls.put(pipe.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


def _answer(message: bytes) -> bytes:
    try:
        return pickle.dumps((True, _execute(pickle.loads(message))))
    except BaseException:  # SystemExit too, and a result that cannot be pickled: the test must hear of it
        return pickle.dumps((False, traceback.format_exc()))


def _execute(call: Call) -> Any:
    with _stacks(Path(call.store).parent, call.rank).open("w") as stacks:
        faulthandler.dump_traceback_later(call.timeout_s, file=stacks)  # by a thread of its own that needs no GIL
        try:
            return _run(call)
        finally:
            faulthandler.cancel_dump_traceback_later()
            gc.collect()  # what a test leaves ends with it, not in the middle of another
            gc.freeze()  # nor is all that was imported looked through again each time, half a second at last


def _run(call: Call) -> Any:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    random.seed(0)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{call.store}",
        rank=call.rank,
        world_size=call.size,
        timeout=timedelta(seconds=call.timeout_s),
    )
    result = call.function(*call.args)
    if dist.is_initialized():
        dist.barrier()  # a rank done early would otherwise close connections that its peers still read
        dist.destroy_process_group()  # and the test's subgroups: their sockets and threads would add up
    return result
