"""`python train.py -m …`: Hydra chooses and starts the jobs; a job is `python train.py …` in its own directory.

Each job has processes of its own, so that a process group, a CUDA context, a leak or a crash of one job cannot reach
the next. Every Hydra launcher works: it calls an ordinary function (`sweep_job.Job`), which starts a program and waits.

The same command with `hydra.sweep.dir=<its directory>` resumes a sweep that was interrupted: jobs that finished are not
run again, and a job that was stopped continues from its newest checkpoint.
"""

import math
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddp_agent.cli import interruption, sweep_end
from ddp_agent.cli.composition import Composed, Configs
from ddp_agent.cli.explanation import explain
from ddp_agent.cli.sweep_job import Job, JobFailedError
from ddp_agent.cli.sweep_record import SweepRecord
from ddp_agent.config.redaction import redacted_override
from ddp_agent.config.untrusted import walk
from ddp_agent.distributed.process import TorchrunEnvironment
from ddp_agent.errors import ConfigError
from ddp_agent.outputs.files import disk_errors_explained
from ddp_agent.outputs.run_files import RunFiles

_LISTED = (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP, ValueType.RANGE_SWEEP)


def run(configs: Configs, command: Sequence[str], overrides: Sequence[str]) -> int:
    """Run the whole sweep. Return 0, or 1 when a job failed. `command` with overrides appended starts one job."""
    first = _checked(configs, overrides)
    with tempfile.TemporaryDirectory(prefix="ddp_agent-sweep-") as folder, interruption.raised():
        record = SweepRecord.begin(Path(folder, "jobs"), _count(first, overrides))
        deferred = _deferred_to_jobs(overrides)
        typed = [*(deferred.get(override, override) for override in overrides), *_multirun(overrides)]
        failed: JobFailedError | None = None
        try:
            with disk_errors_explained(), configs.hydra(overrides) as instance:
                instance.multirun(config_name=configs.name, task_function=Job(tuple(command)), overrides=typed)
        except JobFailedError as error:
            failed = error
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error)) from error
        except (SystemExit, KeyboardInterrupt) as stop:
            sweep_end.stopped(record, _directory(first), interruption.name_of(stop))
            raise
        return sweep_end.ended(record, _directory(first), str(failed) if failed else None)


def _directory(composed: Composed) -> Path | None:
    with suppress(OmegaConfBaseException):  # only Hydra can name it, in the sweep
        return Path(str(composed.cfg.hydra.sweep.dir)).absolute()
    return None


def _count(composed: Composed, overrides: Sequence[str]) -> int | None:
    """Return the number of jobs; None where only the sweeper knows it."""
    sweeper = composed.cfg.hydra.sweeper
    if isinstance(trials := OmegaConf.select(sweeper, "n_trials"), int):
        return trials
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper") or sweeper.get("params"):
        return None
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = [override for override in parsed if override.is_sweep_override()]
    if any(override.value_type not in _LISTED for override in swept):
        return None
    return math.prod(sum(1 for _ in override.sweep_string_iterator()) for override in swept)


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


def _checked(configs: Configs, overrides: Sequence[str]) -> Composed:
    """Compose one job beforehand and raise ConfigError: Hydra would explain only the first wrong key, and badly."""
    try:
        first = configs.compose(_first_job(overrides))
        problems = [*first.problems, *first.loader.directory_problems(first.cfg)]
    except OverrideParseException as error:
        raise ConfigError(explain(error, error.override)) from error
    if problems:
        job = shlex.join(map(redacted_override, _first_job(overrides)))
        raise ConfigError(
            [
                *problems,
                f"(in the sweep's first job: {job}. A key that some choices lack needs a sweep "
                "for the others; a report takes the directories of several)",
            ]
        )
    if sweep_dir := _directory(first):
        _refuse_obstacles(sweep_dir)
    return first


def _refuse_obstacles(sweep_dir: Path) -> None:
    """Raise ConfigError if Hydra, which writes into the directories of jobs, would follow a link or wait for a FIFO."""
    try:
        found = next(((folder, why) for folder, _, _ in walk(sweep_dir) if (why := RunFiles(folder).obstacle())), None)
    except OSError as error:
        raise ConfigError(f"hydra.sweep.dir={sweep_dir}: {error.strerror}") from error
    if found:
        folder, why = found
        raise ConfigError(f"hydra.sweep.dir={sweep_dir}: {folder}: {why}; remove it, or choose a new directory")


def _first_job(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of the first job, without those that only Hydra can expand: intervals and `glob(…)`."""
    first: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.is_sweep_override():
            first.append(str(override.input_line))
        elif override.value_type in _LISTED:
            first.append(f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}")
    return first
