"""Entry of every command line: decide which row of the package's table was typed. Imports no torch by itself."""

import argparse
import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser  # the flags are Hydra's
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ddp_agent.cli.composition import NPROC_PER_NODE, RUN_DIR, Check, Configs, Work
from ddp_agent.cli.explanation import explain
from ddp_agent.cli.program import Program
from ddp_agent.config import help_text
from ddp_agent.config.redaction import remember_environment, remember_overrides, scrubbed
from ddp_agent.distributed.process import TorchrunEnvironment, die_with_parent
from ddp_agent.distributed.variables import whole
from ddp_agent.errors import ConfigError, RefusedError, UnreachableError
from ddp_agent.outputs import streams

# Hydra's grammar has no value that begins with ~, which many shells leave alone in key=~/folder.
_HOME = re.compile(r"([+]{0,2}[\w.]+=)(~[^',]*)")


def main(work: Work, *, check: Check, conf: Path, config_name: str = "config", program: Program | None = None) -> int:
    """Do what `sys.argv` says. Return the exit code: 0 done, 2 wrong configuration, 3 data or checkpoint, 1 any other.

    `check` raises ConfigError for a wrong configuration. `work` trains on every rank, in a run directory that is
    claimed for it. `program` starts the same command again; default: the script that is running.
    """
    remember_environment()
    environment, refused = _environment()
    if environment is not None or os.environ.get(RUN_DIR):
        die_with_parent()
    try:
        typed = _CommandLine(program or Program.script(), conf, config_name)
        if typed.only_shows:
            first = environment is None or environment.rank == 0
            return streams.run_command(lambda: _show(typed)) if first else 0
        streams.protect()
        if refused:
            raise refused
        return _dispatch(environment, work, check, typed)
    except RefusedError as refusal:
        streams.protect()
        _print_once(str(refusal), None if isinstance(refusal, UnreachableError) else environment)
        return refusal.exit_code
    except KeyboardInterrupt:
        return streams.INTERRUPTED
    except Exception:
        streams.protect()
        traceback.print_exc()
        return 1


def _environment() -> tuple[TorchrunEnvironment | None, ConfigError | None]:
    """Return the environment, or why it is refused. A command that starts nothing works in any environment."""
    try:
        return TorchrunEnvironment.read(), None
    except ConfigError as refused:
        return None, refused


def _print_once(message: str, environment: TorchrunEnvironment | None) -> None:
    """Print a refusal; under torchrun once for all ranks."""
    message = scrubbed(message)
    if environment is None:
        print(message, file=sys.stderr)
    else:
        from ddp_agent.cli.rank_process import print_once
        from ddp_agent.distributed.rendezvous import connect

        print_once(connect(), message)


def quoted_home(argument: str) -> str:
    """Return an override with quotes around a value that begins with `~`."""
    found = _HOME.fullmatch(argument)
    return f"{found[1]}'{found[2]}'" if found else argument


class _CommandLine:
    """Parsed command line. Raises ConfigError for a wrong one."""

    def __init__(self, program: Program, conf: Path, config_name: str) -> None:
        self.program = program
        self.arguments = [quoted_home(argument) for argument in sys.argv[1:]]
        self.flags = _parse(self.arguments)
        self.overrides: list[str] = self.flags.overrides
        remember_overrides(self.overrides)
        self.configs = _configs(self.flags, conf, config_name, program.folder)

    @property
    def only_shows(self) -> bool:
        """True for a command that prints and starts nothing: it may run wherever a person types it."""
        flags = self.flags
        return bool(flags.help or flags.cfg or flags.info or flags.hydra_help or flags.shell_completion)


def _dispatch(environment: TorchrunEnvironment | None, work: Work, check: Check, typed: _CommandLine) -> int:
    flags, program, configs = typed.flags, typed.program, typed.configs
    if flags.multirun or "hydra.mode=MULTIRUN" in typed.overrides:
        return _sweep(environment, typed)
    if environment is not None:
        from ddp_agent.cli import rank_process

        return rank_process.run(configs, check, work, typed.overrides) or 0
    from ddp_agent.cli import relaunch

    return relaunch.run(configs, check, program.words, typed.arguments, typed.overrides)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            flags = get_args_parser().parse_args(arguments)
    except SystemExit as stop:
        if stop.code == 0:  # --version
            raise
        line = complaint.getvalue().strip().splitlines()[-1]
        hint = "; settings are typed as key=value, without dashes" if "unrecognized arguments" in line else ""
        raise ConfigError(line + hint) from stop
    if flags.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: it reads a pickle, which can run code; give the overrides instead")
    return flags


def _configs(flags: argparse.Namespace, conf: Path, config_name: str, relative_to: Path) -> Configs:
    folder = relative_to / flags.config_path if flags.config_path else conf
    extra = Path(flags.config_dir).absolute() if flags.config_dir else None
    if extra and not extra.is_dir():
        raise ConfigError(f"--config-dir: found {flags.config_dir}, which is no directory")
    return Configs(folder=folder.absolute(), name=flags.config_name or config_name, extra_folder=extra)


def _show(typed: _CommandLine) -> int:
    """Print what Hydra's own flags ask for. Nothing is started."""
    flags, configs, program = typed.flags, typed.configs, typed.program
    if flags.help:
        return help_text.show(configs.folder, program.typed, program.under_torchrun)
    asked = {"--cfg": "cfg", "--info": "info", "--shell-completion": "shell_completion", "-m": "multirun"}
    if len(several := [flag for flag, attribute in asked.items() if getattr(flags, attribute)]) > 1:
        raise ConfigError(f"found {' and '.join(several)}, expected one of them")
    try:
        with configs.hydra(typed.overrides) as instance:
            if flags.hydra_help:
                instance.hydra_help(config_name=configs.name, args_parser=get_args_parser(), args=flags)
            elif flags.cfg:
                instance.show_cfg(configs.name, typed.overrides, flags.cfg, flags.package, flags.resolve)
            elif flags.shell_completion:
                instance.shell_completion(configs.name, typed.overrides)
            else:
                instance.show_info(flags.info, config_name=configs.name, overrides=typed.overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    return 0


def _sweep(environment: TorchrunEnvironment | None, typed: _CommandLine) -> int:
    from ddp_agent.cli import relaunch, sweep

    if environment is None:
        relaunch.refuse_sweep_on_every_node(typed.program.typed)
    else:
        # The ranks beside rank 0 leave quietly, so that rank 0 may speak. A node without rank 0 waits for nothing.
        if environment.rank != 0:
            return 0 if environment.node_rank == 0 else ConfigError.exit_code
        if whole(os.environ, "TORCHELASTIC_RESTART_COUNT", 0) > 0:
            print("a sweep is not repeated by torchrun's restarts", file=sys.stderr)
            return 1
        sweep.refuse_several_nodes(environment, typed.overrides, typed.program.typed)
        os.environ[NPROC_PER_NODE] = str(environment.local_world_size)
    values = {f"--config-{name}": getattr(typed.flags, f"config_{name}") for name in ("name", "path", "dir")}
    given = [part for name, value in values.items() if value for part in (name, value)]
    return sweep.run(typed.configs, [sys.executable, *typed.program.words, *given], typed.overrides)
