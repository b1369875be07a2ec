"""Which of the five things in the package's table was typed, and who does it. Imports no torch by itself."""

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser  # the flags are Hydra's, and its sweep parses them again

from ddp_agent.cli.composition import NPROC_PER_NODE, RUN_DIR, VERSION_BASE, Check, Configs, Work
from ddp_agent.config import help_text as catalogue
from ddp_agent.config.redaction import scrubbed
from ddp_agent.distributed.process import die_with_parent
from ddp_agent.distributed.torchrun_env import Place
from ddp_agent.errors import ConfigError, RefusedError

INTERRUPTED = 130


def main(work: Work, *, check: Check, conf: Path, config_name: str = "config") -> int:
    """The exit code of this process: 0 done, 2 wrong configuration, 3 data or checkpoint, …; 1 any other failure.

    `check` raises ConfigError; `work` trains, on every rank, in a run directory that is claimed for it.
    """
    place = Place.read()
    if place is not None or RUN_DIR in os.environ:
        die_with_parent()
    try:
        return _dispatch(place, work, check, conf, config_name)
    except RefusedError as refusal:
        _say(str(refusal), place)
        return refusal.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return 1


def _say(message: str, place: Place | None) -> None:
    message = scrubbed(message)
    if place is None:
        print(message, file=sys.stderr)
    else:
        from ddp_agent.cli.rank_process import say_once
        from ddp_agent.distributed.rendezvous import connect

        say_once(connect(), message)


def _dispatch(place: Place | None, work: Work, check: Check, conf: Path, config_name: str) -> int:
    first = place is None or place.rank == 0
    typed = sys.argv[1:]
    flags = _parse(typed)
    configs = _configs(flags, conf, config_name)
    if flags.help:
        return catalogue.show(configs.folder) if first else 0
    if flags.cfg or flags.info or flags.hydra_help or flags.shell_completion:
        return _show(configs) if first else 0
    if flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides:
        return _sweep(place, configs, flags)
    if place is not None:
        from ddp_agent.cli import rank_process

        return rank_process.run(configs, check, work, flags.overrides) or 0
    from ddp_agent.cli import relaunch

    return relaunch.run(configs, check, _script(), typed, flags.overrides)


def _parse(typed: Sequence[str]) -> argparse.Namespace:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            flags = get_args_parser().parse_args(typed)
    except SystemExit as stop:
        if stop.code == 0:  # --version
            raise
        raise ConfigError(complaint.getvalue().strip().splitlines()[-1]) from stop
    if flags.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: it reads a pickle, which can run code; give the overrides instead")
    return flags


def _configs(flags: argparse.Namespace, conf: Path, config_name: str) -> Configs:
    folder = _script().parent / flags.config_path if flags.config_path else conf
    extra = Path(flags.config_dir).absolute() if flags.config_dir else None
    if extra and not extra.is_dir():
        raise ConfigError(f"--config-dir: found {flags.config_dir}, which is no directory")
    return Configs(folder=folder.absolute(), name=flags.config_name or config_name, extra_folder=extra)


def _show(configs: Configs) -> int:
    def never_called(cfg: Any) -> None:
        raise AssertionError

    hydra.main(version_base=VERSION_BASE, config_path=str(configs.folder), config_name=configs.name)(never_called)()
    return 0


def _sweep(place: Place | None, configs: Configs, flags: argparse.Namespace) -> int:
    from ddp_agent.cli import sweep

    if place is not None:
        if place.rank != 0:  # beside rank 0 leave quietly, so that it may speak; a node without it waits for nothing
            return 0 if place.node_rank == 0 else ConfigError.exit_code
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
            print("a sweep is not repeated by torchrun's restarts", file=sys.stderr)
            return 1
        sweep.refuse_several_nodes(place, flags.overrides)
        os.environ[NPROC_PER_NODE] = str(place.local_world_size)
    named = {
        "--config-name": flags.config_name,
        "--config-path": flags.config_path,
        "--config-dir": flags.config_dir,
    }
    given = [part for name, value in named.items() if value for part in (name, value)]
    return sweep.run(configs, [sys.executable, str(_script()), *given], flags.overrides)


def _script() -> Path:
    return Path(sys.argv[0]).absolute()
