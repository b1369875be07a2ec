"""Whole runs, as `train.py` makes them, inside ranks that are already there."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from this_rank import this_rank

from ddp_agent.cli.composition import Configs
from ddp_agent.data.task import Task
from ddp_agent.errors import RefusedError
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.run import Run
from ddp_agent.training.model import create_model
from ddp_agent.training.settings import check_against_data, parse

ROOT = Path(__file__).parents[2]
MODES = tuple(sorted(file.stem for file in (ROOT / "conf" / "sync").glob("*.yaml")))
# For laws that take seconds a mode: one mode a kind by default, and all of them in CI.
FEW = ("allreduce", "local_sgd", "streaming_diloco")
EACH = [pytest.param(name, marks=[] if name in FEW else pytest.mark.exhaustive) for name in MODES]
SMALL = ("max_steps=8", "global_batch_size=48", "log_every=2", "run_name=test")
PERIODS = {
    "local_sgd": ("sync.period=4",),
    "post_local_sgd": ("sync.period=4", "sync.switch_step=2"),
    "parameter_update": ("sync.period=4", "sync.outer_lr=0.4"),
    "diloco": ("sync.period=4",),
    "hierarchical": ("sync.node_period=2", "sync.global_period=4"),
    "slowmo": ("sync.period=4",),
    "streaming_diloco": ("sync.period=4", "sync.delay=1"),
    "gossip": ("sync.period=4",),
    "easgd": ("sync.period=4",),
}


@cache
def _composed(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    context = (
        Configs(folder=ROOT / "conf", name="config").compose(overrides).checked(lambda context: None, lambda cfg: 1)
    )
    return context.cfg, context.choices


def config(*overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The whole config of a small run, and the choices it is made of."""
    cfg, choices = _composed((*SMALL, *overrides))
    return copy.deepcopy(cfg), dict(choices)


def mode(name: str, *overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    """With periods of 4 steps."""
    return config(f"sync={name}", *PERIODS.get(name, ()), *overrides)


def run(
    cfg: dict[str, Any],
    choices: dict[str, str],
    path: str,
    attempt: int = 0,
    change: Callable[[Task], Task] = lambda task: task,
) -> dict[str, Any] | str:
    """On every rank: the summary, or the message of a refusal. The data are what `change` makes of them."""
    runtime = this_rank(attempt)
    rank, ranks = runtime.rank, runtime.world_size
    try:
        settings = parse(cfg, choices=choices, world_size=ranks)
        task = change(settings.dataset.load())
        check_against_data(settings, task, ranks)
        with RunDirectory(Path(path), rank=rank, restart=attempt > 0) as directory:
            dist.barrier()
            return Run(settings, task, create_model(settings, task), directory, runtime).train()
    except RefusedError as refusal:
        return f"{type(refusal).__name__}: {refusal}"
