"""Averaging ResNet-18's parameters over ranks, as each peer that can do it does."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer

from benchmarks import sync
from benchmarks.outcome import Machine, Outcome
from benchmarks.sync import Contender
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.rng import seed_everything


def measure(create: Callable[[], nn.Module], name: str, ranks: Runtime, repeats: int, peers: Sequence[str]) -> Outcome:
    """`peers`: those that are installed."""
    seed_everything(0, ranks.rank)
    found = list(contenders(lambda: create().to(ranks.device), ranks.device, peers))
    return Outcome(
        title="Averaging the parameters of a model once",
        how=f"medians of {repeats} alternating rounds, time of the slowest rank; ratio: to this tree, in the same "
        "round, target: at least; bytes and calls as c10d saw them; all left the mean over ranks",
        machine=Machine.here(ranks),
        rows=sync.measured(name, found, repeats, ranks.device),
    )


def contenders(create: Callable[[], nn.Module], device: torch.device, peers: Sequence[str]) -> Iterator[Contender]:
    """The first is the yardstick. Each has a model of its own."""
    yield replace(sync.ours(create()), target=None)
    yield _contender("torch PostLocalSGD", create(), torch_averager, 1.5)
    if "accelerate" in peers:
        from benchmarks import with_accelerate

        yield _contender("accelerate LocalSGD", create(), lambda m: with_accelerate.averager(m, device), 2.0)


def _contender(
    name: str, model: nn.Module, averager: Callable[[nn.Module], Callable[[], None]], target: float
) -> Contender:
    return Contender(name, lambda: list(model.parameters()), averager(model), target=target)


def torch_averager(model: nn.Module) -> Callable[[], None]:
    """What every step of PostLocalSGDOptimizer ends with, here without the step before it."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # it leaves out what has none
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that averaging in every step is not local SGD
        averager = PeriodicModelAverager(period=1)
    optimizer = PostLocalSGDOptimizer(torch.optim.SGD(model.parameters()), averager)
    return lambda: averager.average_parameters(optimizer.param_groups)
