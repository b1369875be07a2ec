"""Whole runs, as `train.py` makes them, inside of ranks that have been started before."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from configs import files
from short_periods import short
from this_rank import this_rank

from ddp_agent.cli.composition import Configs
from ddp_agent.data.task import Task
from ddp_agent.errors import RefusedError
from ddp_agent.outputs.files import disk_errors_explained
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.run import Run
from ddp_agent.training.model import create_model
from ddp_agent.training.settings import check_against_data, parse

ROOT = Path(__file__).parents[2]
MODES = tuple(files("sync"))
# For laws that take seconds per mode: one mode per kind by default, and all of them in CI.
FEW = ("allreduce", "local_sgd", "streaming_diloco")
EACH = [pytest.param(name, marks=[] if name in FEW else pytest.mark.exhaustive) for name in MODES]
SMALL = ("max_steps=8", "global_batch_size=48", "log_every=2", "run_name=test")


@cache
def _composed(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    context = (
        Configs(folder=ROOT / "conf", name="config").compose(overrides).checked(lambda context: None, lambda cfg: 1)
    )
    return context.cfg, context.choices


def config(*overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the configuration of a small run, and the file chosen in each group."""
    cfg, choices = _composed((*SMALL, *overrides))
    return copy.deepcopy(cfg), dict(choices)


def mode(name: str, *overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the configuration of a small run with periods of 4 steps."""
    return config(f"sync={name}", *short(name, period=4, switch_step=2), *overrides)


def run(
    cfg: dict[str, Any],
    choices: dict[str, str],
    path: str,
    attempt: int = 0,
    change: Callable[[Task], Task] = lambda task: task,
) -> dict[str, Any] | str:
    """Train on this rank. Return the summary, or the message of a refusal. `change` replaces the task."""
    runtime = this_rank(attempt)
    rank, ranks = runtime.rank, runtime.world_size
    try:
        settings = parse(cfg, choices=choices, world_size=ranks)
        task = change(settings.dataset.load())
        check_against_data(settings, task, ranks)
        with disk_errors_explained(), RunDirectory(Path(path), rank=rank, restart=attempt > 0) as directory:
            dist.barrier()
            return Run(settings, task, create_model(settings, task), directory, runtime).train()
    except RefusedError as refusal:
        return f"{type(refusal).__name__}: {refusal}"
