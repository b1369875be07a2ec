"""One job of a sweep: a program that trains in processes and in a directory of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ddp_agent.cli import interruption, named_runs
from ddp_agent.cli.composition import RUN_DIR, RUN_TIME, redact_saved, unresolved
from ddp_agent.cli.sweep_record import DONE_BEFORE, ENDED, FAILED, STARTED, SweepRecord
from ddp_agent.config.redaction import redacted_override, remember_environment, remember_overrides, scrubbed
from ddp_agent.config.untrusted import number, plain, read_json_object
from ddp_agent.distributed.process import EARLIER_ATTEMPTS, without_torchrun
from ddp_agent.outputs import streams
from ddp_agent.outputs.files import write_atomically
from ddp_agent.outputs.run_files import RunFiles
from ddp_agent.outputs.run_status import conclude

GRACE_S = 60.0  # for a job that was asked to stop: its ranks save, and torchrun waits for them
POLL_S = 0.05
JOB_FILE = "job.json"  # the overrides of a job: only the same job may resume in its directory
_LIMIT_BYTES = 64 << 20


class JobFailedError(Exception):
    """Failure of one job. Hydra goes on with the other jobs."""


@dataclass(frozen=True)
class Job:
    """Function that Hydra calls for each job. A plain importable object, since submitit pickles it."""

    command: tuple[str, ...]

    def __call__(self, cfg: DictConfig) -> float | None:
        """Run the job. Return its best metric, for a sweeper that optimises in `hydra.sweeper.direction`."""
        streams.protect()  # a launcher may have started this process
        job, record = HydraConfig.get(), SweepRecord.of_this_job()
        run_dir = Path(job.runtime.output_dir)
        typed = unresolved(job.overrides.task)
        remember_environment()
        remember_overrides(typed)
        overrides = [redacted_override(override) for override in typed]
        redact_saved(run_dir, Path(job.runtime.cwd, job.sweep.dir))
        name = f"job {job.job.num} ({shlex.join(overrides)})"
        facts = {"job": job.job.num, "overrides": overrides, "run_dir": str(run_dir)}
        _refuse_several_tasks(name)
        attempts = _earlier_attempts(run_dir, overrides, name)
        if attempts and RunFiles(run_dir).read_status().get("status") == "finished":
            print(f"{name}: finished before, in {run_dir}", flush=True)
            record.note(DONE_BEFORE, **facts)
            return _objective(run_dir)
        _write_job(run_dir, overrides, attempts + 1, name)
        named_runs.link(run_dir, Path(job.runtime.cwd, job.sweep.dir), overrides)
        print(f"{name}: {run_dir}{record.progress(job.job.num)}", flush=True)
        record.note(STARTED, **facts)
        command = [*self.command, *typed, f"hydra.job.num={job.job.num}"]
        code = _run(command, run_dir, job.runtime.cwd, attempts)
        record.note(ENDED, **facts)
        if code != 0:
            raise _failure(f"{name} failed: {_reason(run_dir, code)}")
        return _objective(run_dir)


def _refuse_several_tasks(name: str) -> None:
    """Raise JobFailedError where submitit calls the job in several tasks: each would train alone, in one directory."""
    tasks = os.environ.get("SLURM_NTASKS", "1") if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else "1"
    if tasks != "1":
        raise _failure(
            f"{name} not started: found {tasks} Slurm tasks, expected 1: a job starts its ranks itself; leave "
            "hydra.launcher.nodes and hydra.launcher.tasks_per_node at 1 (several nodes: launch/slurm.sbatch)"
        )


def _earlier_attempts(run_dir: Path, overrides: Sequence[str], name: str) -> int:
    """Return how often this job was started in its directory. Raise JobFailedError for another job's directory."""
    try:
        job = read_json_object(run_dir / JOB_FILE, _LIMIT_BYTES, below=run_dir)
        earlier, attempts = list(job["overrides"]), int(job["attempts"])
        if not all(isinstance(override, str) for override in earlier):
            raise ValueError(f"overrides: found {plain(repr(earlier), 200)}, expected strings")
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _failure(f"{name} not started: {run_dir / JOB_FILE} cannot be read ({reason})") from error
    if list(map(redacted_override, earlier)) != list(overrides):  # an older version hid fewer secrets
        raise _failure(
            f"{name} not started: {run_dir} holds a job of another sweep ({plain(shlex.join(earlier), 300)}); "
            "choose another hydra.sweep.dir, or type that sweep's command"
        )
    return attempts


def _write_job(run_dir: Path, overrides: Sequence[str], attempts: int, name: str) -> None:
    try:
        write_atomically(run_dir / JOB_FILE, json.dumps({"overrides": overrides, "attempts": attempts}) + "\n")
    except OSError as error:
        raise _failure(f"{name} not started: {error.filename}: {error.strerror}") from error


def _run(command: Sequence[str], run_dir: Path, cwd: str, attempts: int) -> int:
    """Run a job in a process group of its own, so that Ctrl-C reaches it once, from here, as a request to stop.

    A job that ends without a word, as one that was stopped while it imported, gets its status from here.
    """
    environment = {**without_torchrun(os.environ), RUN_DIR: str(run_dir), EARLIER_ATTEMPTS: str(attempts)}
    environment.pop(RUN_TIME, None)  # the start of the sweep
    process = None
    try:
        with interruption.held():  # the job of a `Popen` that is interrupted would run on without a parent
            process = subprocess.Popen(command, env=environment, cwd=cwd, process_group=0)
        code = process.wait()
    except OSError as error:
        raise _failure(f"{run_dir}: not started: {command[0]}: {error.strerror}") from error
    except BaseException as stop:
        if process is not None:
            _stop(process)
            conclude(run_dir, f"{interruption.name_of(stop) or 'the sweep ended'}: stopped before it could save")
        raise
    if code != 0:
        conclude(run_dir, f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}")
    return code


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask a job to save and end, and wait for it. A further signal to the sweep kills the job."""
    with interruption.held() as further:
        process.terminate()
        deadline = time.monotonic() + GRACE_S
        while process.poll() is None and time.monotonic() < deadline and not further:
            time.sleep(POLL_S)
        process.kill()
        process.wait()
        further.clear()  # the first one ends the sweep


def _reason(run_dir: Path, code: int) -> str:
    status = RunFiles(run_dir).read_status()
    reason = plain(status.get("reason") or f"exit code {code}", 1000)
    return f"preempted, {reason}" if status.get("status") == "preempted" else reason


def _failure(text: str) -> JobFailedError:
    """Return the failure after it was printed, so that it is known before the sweep ends."""
    text = scrubbed(text)
    print(text, file=sys.stderr, flush=True)
    SweepRecord.of_this_job().note(FAILED, text=text)
    return JobFailedError(text)


def _objective(run_dir: Path) -> float | None:
    summary = RunFiles(run_dir).summary
    try:
        return number(read_json_object(summary, _LIMIT_BYTES, below=run_dir).get("best_metric"))
    except OSError as error:
        raise _failure(f"{summary}: {error.strerror}, expected the results of a finished run") from error
