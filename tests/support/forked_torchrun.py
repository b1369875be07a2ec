"""A stand-in for torchrun on one machine, which forks ranks from a process that has imported torch.

A run then costs a second instead of eight, and is still `train.py` in processes of its own: the same store, variables,
signals and restarts. That the real one does alike is what tests/faults/test_faults_torchrun.py is for.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

import rank_pool
from fault_points import Fault, arm

from ddp_agent.distributed.c10d import TCPStore

ROOT = Path(__file__).parents[2]
GRACE_S = 30.0  # torchrun's
LIMIT_S = 120.0


@dataclass
class Outcome:
    """The end of a run: exit codes by rank for each attempt, and seconds until all its ranks had ended."""

    run_dir: Path
    codes: list[list[int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    fallout_s: list[float] = field(default_factory=list)  # from the first rank's end to the last one's
    stderr: str = ""

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.run_dir / "status.json").read_text())
        return status

    def write_down(self) -> None:
        """Append to the file that $FAULTS_LOG names, for docs/reliability.md."""
        if log := os.environ.get("FAULTS_LOG"):
            seconds = {"fallout_s": self.fallout_s, "seconds": self.seconds}
            rounded = {key: [round(each, 2) for each in value] for key, value in seconds.items()}
            told = {"test": os.environ.get("PYTEST_CURRENT_TEST"), "codes": self.codes, **rounded}
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")


class Torchrun:
    """Use it as a context manager: no process of it is left behind."""

    tells_others = True  # to end, when a rank has failed

    def __init__(
        self,
        folder: Path,
        size: int,
        typed: Sequence[str],
        faults: Sequence[Fault] = (),
        *,
        max_restarts: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._more = dict(environment or {})
        self.run_dir = folder / "run"
        self.outcome = Outcome(self.run_dir)
        self._folder, self._size, self._faults, self._restarts = folder, size, list(faults), max_restarts
        self._typed = ["run_name=run", f"hydra.run.dir='{self.run_dir}'", *typed]
        self._context = rank_pool.forking()
        self.ranks: list[BaseProcess] = []
        folder.mkdir(exist_ok=True, parents=True)
        self._store = self.open_store()

    def __enter__(self) -> Self:
        self._start(0)
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            if rank.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank.pid or 0, signal.SIGKILL)
            rank.join()

    def signal(self, number: signal.Signals, ranks: Sequence[int] | None = None) -> None:
        for rank in range(self._size) if ranks is None else ranks:
            pid = self.ranks[rank].pid
            assert pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self) -> Outcome:
        for attempt in range(self._restarts + 1):
            if attempt:
                self._start(attempt)
            began = time.monotonic()
            while not (self._failed() and self.tells_others) and any(rank.is_alive() for rank in self.ranks):
                time.sleep(0.05)
                assert time.monotonic() < began + LIMIT_S, self.said()
            first = time.monotonic()
            if self._failed():
                self.signal(signal.SIGTERM, [rank for rank, it in enumerate(self.ranks) if it.is_alive()])
            for rank in self.ranks:
                rank.join(max(0.0, first + GRACE_S - time.monotonic()))
                if rank.is_alive():
                    rank.kill()
                    rank.join()
            self.outcome.codes.append([rank.exitcode or 0 for rank in self.ranks])
            self.outcome.seconds.append(time.monotonic() - began)
            self.outcome.fallout_s.append(time.monotonic() - first)
            if not any(self.outcome.codes[-1]):
                break
        self.outcome.stderr = self.said()
        self.outcome.write_down()
        return self.outcome

    def _failed(self) -> bool:
        return any(rank.exitcode for rank in self.ranks)

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self._folder.glob("rank*.txt")))

    def open_store(self) -> TCPStore:
        return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def variables(self, rank: int) -> dict[str, Any]:
        return {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": self._size,
            "LOCAL_WORLD_SIZE": self._size,
            "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self._store.port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }

    def _start(self, attempt: int) -> None:
        self.ranks = []
        for rank in range(self._size):
            variables = self.variables(rank) | {"TORCHELASTIC_RESTART_COUNT": attempt}
            environment = {name: str(value) for name, value in variables.items()} | self._more
            arguments = (environment, str(self._folder), self._typed, self._faults, attempt)
            process = self._context.Process(target=_rank, args=arguments, name=f"rank {rank}")
            process.start()
            self.ranks.append(process)


def run(
    folder: Path, size: int, typed: Sequence[str], faults: Sequence[Fault] = (), *, max_restarts: int = 0
) -> Outcome:
    with Torchrun(folder, size, typed, faults, max_restarts=max_restarts) as torchrun:
        return torchrun.wait()


def _rank(environment: dict[str, str], folder: str, typed: list[str], faults: list[Fault], attempt: int) -> None:
    os.environ.update(environment, OMP_NUM_THREADS="1")
    os.chdir(folder)
    rank = int(environment["RANK"])
    with _output_to(Path(folder, f"rank{rank}.txt")):
        import torch

        if network := environment.get("NETWORK_OF_TEST"):
            from cable import move

            move(network, Path(folder))
        if umask := environment.get("UMASK_OF_TEST"):
            os.umask(int(umask, 8))
        torch.set_num_threads(1)
        sys.path.insert(0, str(ROOT))
        sys.argv = ["train.py", *typed]
        try:
            from ddp_agent.__main__ import check, train
            from ddp_agent.cli import leave, main

            arm(faults, rank, attempt)
            leave(main(train, check=check, conf=ROOT / "conf"))
        except BaseException:
            traceback.print_exc()
            os._exit(99)


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        yield
