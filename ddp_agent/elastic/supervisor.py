"""The supervisor of one machine's replicas: it starts them, restarts a lost one, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from ddp_agent.config.command_line import for_hydra
from ddp_agent.config.untrusted import no_link
from ddp_agent.distributed.process import EARLIER_ATTEMPTS, REPLICA, without_torchrun
from ddp_agent.outputs.run_status import conclude

POLL_S = 0.1
GRACE_S = 45.0  # torchrun gives its rank 30 s to save
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FINAL = (2, 3, 75)  # exit codes that a restart would not change: configuration, data, asked to stop


@dataclass
class Child:
    """One replica's process."""

    number: int
    starts: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    code: int | None = None  # exit code of the last start, once there will be no other


@dataclass
class Supervisor:
    """The replicas `numbers` of `count`. Each writes into `folder`/replica-<number>."""

    program: Sequence[str]  # what trains, behind the interpreter: a script, or -m and a module
    arguments: Sequence[str]
    folder: Path
    numbers: Sequence[int]
    count: int
    coordinator: str
    max_restarts: int
    children: list[Child] = field(init=False)
    stopping: bool = field(default=False, init=False)

    def run(self) -> int:
        """Run until all replicas have ended. Return 0 if one finished the run, else the first replica's exit code."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.children = [Child(number) for number in self.numbers]
        numbers = [it for it in SIGNALS if signal.getsignal(it) != signal.SIG_IGN]  # `nohup` needs it
        handlers = {it: signal.signal(it, self._stop) for it in numbers}
        try:
            for child in self.children:
                self._start(child)
            while any(child.code is None for child in self.children):
                self._check_children()
                time.sleep(POLL_S)
        finally:
            self._end()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        codes = [child.code or 0 for child in self.children]
        return 0 if 0 in codes else codes[0]

    def _start(self, child: Child) -> None:
        """Start a replica. The first one's output is shown; those of others are files beside their run directories."""
        quoted = f"hydra.run.dir={for_hydra(str(self.folder.absolute() / f'replica-{child.number}'))}"
        command = [sys.executable, "-m", "ddp_agent.elastic.replica", *self.program, "on_rank_loss=continue", quoted]
        with self._output(child) as output:
            child.process = subprocess.Popen(
                [*command, *self.arguments],
                env=self._environment(child),
                start_new_session=True,  # Ctrl-C is for this process, which passes it on
                stdout=output,
                stderr=output,
            )
        child.starts += 1
        if self.stopping:  # the signal met `Popen`, when this child was not yet known
            child.process.terminate()

    def _output(self, child: Child) -> BinaryIO:
        if child.number == self.numbers[0]:
            return open(os.dup(sys.stderr.fileno()), "ab")
        try:
            return open(self.folder / f"replica-{child.number}.txt", "ab", opener=no_link)
        except OSError:  # a full disk, a link; the replica has a log of its own
            return open(os.devnull, "ab")

    def _environment(self, child: Child) -> Mapping[str, str]:
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        identity = dict(zip(REPLICA, (str(child.number), str(self.count), self.coordinator), strict=True))
        return {
            **without_torchrun(os.environ),
            **identity,
            "PYTHONPATH": path,
            EARLIER_ATTEMPTS: str(child.starts),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or "1",
        }

    def _check_children(self) -> None:
        for child in self.children:
            code = child.process.poll() if child.process else None
            if code is None or child.code is not None:
                continue
            finished = any(other.code == 0 for other in self.children)
            text = f"replica {child.number} ended with code {code}"
            if code == 0 or self.stopping or finished or code in FINAL or child.starts > self.max_restarts:
                child.code = code
                self._conclude(child, code)
                text += " and is not started again"
            else:
                text += f"; started again ({child.starts} of {self.max_restarts})"
                self._start(child)
            if code:
                print(text, file=sys.stderr, flush=True)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        for child in self.children:
            if child.process and child.process.poll() is None:
                child.process.terminate()

    def _end(self) -> None:
        self._stop(0, None)
        deadline = time.monotonic() + GRACE_S
        for child in self.children:
            if child.process:
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.process.kill()  # its rank dies with it
                    child.process.wait()
                self._conclude(child, child.process.returncode)

    def _conclude(self, child: Child, code: int) -> None:
        """Write the status of a replica that ended without a word."""
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        conclude(self.folder / f"replica-{child.number}", f"its torchrun: {how}", rank=0)
