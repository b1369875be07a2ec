"""`python train.py -m …`: Hydra chooses and starts the jobs; a job is `python train.py …` in its own directory.

Each job has processes of its own, so that a process group, a CUDA context, a leak or a crash of one job cannot reach
the next. Every Hydra launcher works: it calls an ordinary function, which starts a program and waits.

The same command with `hydra.sweep.dir=<its directory>` resumes a sweep that was interrupted: jobs that finished are not
run again, and a job that was stopped continues from its newest checkpoint.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ddp_agent.cli import named_runs
from ddp_agent.cli.composition import (
    RUN_DIR,
    RUN_TIME,
    Configs,
    redact_saved,
    unresolved,
)
from ddp_agent.cli.explanation import explain
from ddp_agent.config.redaction import redacted_override, scrubbed
from ddp_agent.config.untrusted import number, plain, read_json_object, walk
from ddp_agent.distributed.process import EARLIER_ATTEMPTS, TorchrunEnvironment, without_torchrun
from ddp_agent.errors import ConfigError
from ddp_agent.outputs.files import write_atomically
from ddp_agent.outputs.run_files import RunFiles

GRACE_S = 60.0  # for a job that was asked to stop: its ranks save, and torchrun waits for them
_FAILURES = "DDP_AGENT_FAILURES"  # a file, since joblib's and submitit's jobs run in other processes
JOB_FILE = "job.json"  # the overrides of a job: only the same job may resume in its directory
_LIMIT_BYTES = 64 << 20
_LISTED = (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP, ValueType.RANGE_SWEEP)


class JobFailedError(Exception):
    """Failure of one job. Hydra goes on with the other jobs."""


@dataclass(frozen=True)
class Job:
    """Function that Hydra calls for each job. A plain importable object, since submitit pickles it."""

    command: tuple[str, ...]

    def __call__(self, cfg: DictConfig) -> float | None:
        """Run the job. Return its best metric, for a sweeper that optimises in `hydra.sweeper.direction`."""
        job = HydraConfig.get()
        run_dir = Path(job.runtime.output_dir)
        typed = unresolved(job.overrides.task)
        overrides = [redacted_override(override) for override in typed]
        redact_saved(run_dir, Path(job.runtime.cwd, job.sweep.dir))
        name = f"job {job.job.num} ({shlex.join(overrides)})"
        _refuse_several_tasks(name)
        attempts = _earlier_attempts(run_dir, overrides, name)
        if attempts and RunFiles(run_dir).read_status().get("status") == "finished":
            print(f"{name}: finished before, in {run_dir}", flush=True)
            return _objective(run_dir)
        write_atomically(run_dir / JOB_FILE, json.dumps({"overrides": overrides, "attempts": attempts + 1}) + "\n")
        named_runs.link(run_dir, Path(job.runtime.cwd, job.sweep.dir), overrides)
        print(f"{name}: {run_dir}", flush=True)
        command = [*self.command, *typed, f"hydra.job.num={job.job.num}"]
        code = _run(command, run_dir, job.runtime.cwd, attempts)
        if code != 0:
            raise JobFailedError(_report(f"{name} failed: {_reason(run_dir, code)}"))
        return _objective(run_dir)


def run(configs: Configs, command: Sequence[str], overrides: Sequence[str]) -> int:
    """Run the whole sweep. Return 0, or 1 when a job failed. `command` with overrides appended starts one job."""
    _refuse_misspelt(configs, overrides)
    with tempfile.TemporaryDirectory(prefix="ddp_agent-sweep-") as folder, _stoppable():
        failures = Path(folder, "failures")
        os.environ[_FAILURES] = str(failures)
        deferred = _deferred_to_jobs(overrides)
        typed = [*(deferred.get(override, override) for override in overrides), *_multirun(overrides)]
        try:
            with configs.hydra(overrides) as instance:
                instance.multirun(config_name=configs.name, task_function=Job(tuple(command)), overrides=typed)
        except JobFailedError as failed:
            return _summarise(failures, failed)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error)) from error
        return 0


def _multirun(overrides: Sequence[str]) -> list[str]:
    """Return the override that -m stands for, unless it was typed."""
    return [] if any(override.startswith("hydra.mode=") for override in overrides) else ["hydra.mode=MULTIRUN"]


def _deferred_to_jobs(overrides: Sequence[str]) -> dict[str, str]:
    """Return overrides that apply to the choice of each job, with the spelling that defers them until it is made.

    In `sync=local_sgd,diloco sync.period=16` Hydra would look for `period` in the default mode, and refuse it.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    return {
        str(override.input_line): f"{override.get_key_element()}=choice({str(override.input_line).partition('=')[2]})"
        for override in parsed
        if not override.is_sweep_override() and not override.is_delete() and not override.is_hydra_override()
        if "." in override.key_or_group and {override.key_or_group.partition(".")[0], "experiment"} & swept
    }


def _refuse_several_tasks(name: str) -> None:
    """Raise JobFailedError where submitit calls the job in several tasks: each would train alone, in one directory."""
    tasks = os.environ.get("SLURM_NTASKS", "1") if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else "1"
    if tasks != "1":
        raise JobFailedError(
            _report(
                f"{name} not started: found {tasks} Slurm tasks, expected 1: a job starts its ranks itself; leave "
                "hydra.launcher.nodes and hydra.launcher.tasks_per_node at 1 (several nodes: launch/slurm.sbatch)"
            )
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
    except OSError as error:
        raise JobFailedError(_report(f"{name} not started: {run_dir / JOB_FILE}: {error.strerror}")) from error
    except (ValueError, KeyError, TypeError) as error:
        raise JobFailedError(_report(f"{name} not started: {run_dir / JOB_FILE} cannot be read ({error})")) from error
    if earlier != list(overrides):
        raise JobFailedError(
            _report(
                f"{name} not started: {run_dir} holds a job of another sweep ({plain(shlex.join(earlier), 300)}); "
                "choose another hydra.sweep.dir, or type that sweep's command"
            )
        )
    return attempts


def refuse_several_nodes(
    environment: TorchrunEnvironment, overrides: Sequence[str], program: str = "python train.py"
) -> None:
    """Raise ConfigError, with the command to use instead, where torchrun started ranks on more than one node."""
    if not environment.single_node:
        typed = shlex.join(overrides)
        nodes = environment.world_size // environment.local_world_size
        raise ConfigError(
            f"-m under torchrun: found {nodes} nodes, but a sweep is driven from one. Sweep on one node with\n"
            f"  {program} -m nproc_per_node={environment.local_world_size} {typed}\n"
            "or start torchrun on all nodes for each job, without -m"
        )


def _refuse_misspelt(configs: Configs, overrides: Sequence[str]) -> None:
    """Compose one job beforehand and raise ConfigError: Hydra would explain only the first wrong key, and badly."""
    try:
        first = configs.compose(_first_job(overrides))
        problems = [*first.problems, *first.loader.directory_problems(first.cfg)]
    except OverrideParseException as error:
        raise ConfigError(explain(error, error.override)) from error
    if problems:
        raise ConfigError(problems)
    with suppress(OmegaConfBaseException):  # of a directory that only Hydra can name, which is new
        _refuse_obstacles(Path(str(first.cfg.hydra.sweep.dir)))


def _refuse_obstacles(sweep_dir: Path) -> None:
    """Raise ConfigError if Hydra, which writes into the directories of jobs, would follow a link or wait for a FIFO."""
    for folder, _, _ in walk(sweep_dir):
        if obstacle := RunFiles(folder).obstacle():
            raise ConfigError(
                f"hydra.sweep.dir={sweep_dir}: {folder}: {obstacle}; remove it, or choose a new directory"
            )


def _first_job(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of the first job, without those that only Hydra can expand: intervals and `glob(…)`."""
    first: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.is_sweep_override():
            first.append(str(override.input_line))
        elif override.value_type in _LISTED:
            first.append(f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}")
    return first


def _run(command: Sequence[str], run_dir: Path, cwd: str, attempts: int) -> int:
    """Run a job in a process group of its own, so that Ctrl-C reaches it once, from here, as a request to stop."""
    environment = {**without_torchrun(os.environ), RUN_DIR: str(run_dir), EARLIER_ATTEMPTS: str(attempts)}
    environment.pop(RUN_TIME, None)  # the start of the sweep
    process = subprocess.Popen(command, env=environment, cwd=cwd, process_group=0)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        process.kill()
        process.wait()
        raise


def _reason(run_dir: Path, code: int) -> str:
    status = RunFiles(run_dir).read_status()
    reason = plain(status.get("reason") or f"exit code {code}", 1000)
    return f"preempted, {reason}" if status.get("status") == "preempted" else reason


def _report(failure: str) -> str:
    failure = scrubbed(failure)
    print(failure, file=sys.stderr, flush=True)
    # The file is on the machine of the sweep; a job may run on another one.
    with suppress(KeyError, OSError), open(os.environ[_FAILURES], "a", encoding="utf-8") as file:
        file.write(json.dumps(failure) + "\n")
    return failure


def _summarise(failures: Path, first: JobFailedError) -> int:
    """Print every failure; only the `first`, which Hydra hands over, where the jobs ran on other machines."""
    lines = failures.read_text(encoding="utf-8").splitlines() if failures.exists() else []
    messages = [json.loads(line) for line in lines] or [str(first)]
    how_many = str(len(messages)) if lines else "at least"
    print(f"\nfailed in this sweep: {how_many}", *messages, sep="\n  ", file=sys.stderr)
    print("to run what is left: the same command with hydra.sweep.dir=<this sweep's directory>", file=sys.stderr)
    return 1


def _objective(run_dir: Path) -> float | None:
    summary = RunFiles(run_dir).summary
    try:
        return number(read_json_object(summary, _LIMIT_BYTES, below=run_dir).get("best_metric"))
    except OSError as error:
        raise JobFailedError(_report(f"{summary}: {error.strerror}, expected the results of a finished run")) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, as Ctrl-C is one, so that the running job is stopped as well."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
