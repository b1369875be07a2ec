"""The time to average a model's parameters, beside plain torch and through every reducer."""

import argparse
import copy
import functools
import itertools
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import configured, yardsticks
from benchmarks.arguments import at_least
from benchmarks.outcome import Machine, Outcome, Row
from benchmarks.rounds import Timing, stopwatch, take_turns
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers import Dense
from ddp_agent.rng import seed_everything
from ddp_agent.sync import LocalSGD
from ddp_agent.sync.engine.internals import internals

SUMMARY = "averaging a model: this tree, torch, a collective per tensor, the raw all_reduce, and every reducer"
OURS = "this tree: LocalSGD, buffers too"
TARGET = 1.15
CHECKS = 20  # in a row: one is too short for the clock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--models", nargs="+", type=_known, default=["resnet18", "resnet50"], metavar="NAME",
                        help="torchvision's classification models (resnet18 resnet50)")  # fmt: skip
    parser.add_argument("--repeats", type=at_least(1), default=60, help="rounds that count (60)")


def _known(name: str) -> str:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise argparse.ArgumentTypeError(f"found {name!r}, expected a classification model of torchvision")
    return name


def measure(arguments: argparse.Namespace, ranks: Runtime) -> Outcome:
    """Compare the contenders on each torchvision model that was asked for."""
    from torchvision import models

    created = {name: functools.partial(models.get_model, name, weights=None) for name in arguments.models}
    return compare(created, arguments.repeats, ranks)


def compare(models: Mapping[str, Callable[[], nn.Module]], repeats: int, ranks: Runtime) -> Outcome:
    """Time every contender on each model, given by name and constructor."""
    rows: list[Row] = []
    for name, create in models.items():
        seed_everything(0, ranks.rank)
        model = create().to(ranks.device)
        through = reduced([parameter.shape for parameter in model.parameters()], ranks.device)
        rows += measured(name, [*contenders(model), *through], repeats, ranks.device)
    return Outcome(
        title="Averaging the parameters of a model, or through a reducer their changes, once",
        how=f"medians of {repeats} alternating rounds, time of the slowest rank; ratio: to the raw collective, in the "
        "same round; bytes and calls as c10d saw them, on the wire with bandwidth-optimal algorithms; check: for "
        "tensors that were given other memory, best of five, and its share of an average",
        machine=Machine.here(ranks),
        rows=rows,
    )


@dataclass(frozen=True)
class Contender:
    """A way of averaging. `average` replaces `tensors()` by their mean over ranks, or by their sum where it `sums`.

    `unsent` returns this rank's part of the mean that is still to come, for a reducer that sends later. A mean is right
    when its root-mean-square error is less than `tolerance` times that of the averaged values.
    """

    name: str
    tensors: Callable[[], Sequence[Tensor]]
    average: Callable[[], None]
    sums: bool = False
    reduces: bool = False
    target: float | None = None
    unsent: Callable[[], Tensor] | None = None
    tolerance: float = 1e-5
    check: Callable[[], None] | None = None


def contenders(model: nn.Module) -> list[Contender]:
    """Return the ways to average a model's parameters, the yardstick first. Each has a copy of the parameters."""
    shapes = [parameter.shape for parameter in model.parameters()]
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    pieces = [piece.view(shape) for piece, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
    packed, tensorwise = copy.deepcopy(model), copy.deepcopy(model)
    return [
        Contender("raw all_reduce of one flat tensor", lambda: pieces, lambda: yardsticks.flat_sum_(flat), sums=True),
        ours(model),
        Contender(
            "torch average_parameters",
            lambda: list(packed.parameters()),
            lambda: yardsticks.torch_mean_(packed.parameters()),
        ),
        Contender(
            "all_reduce of each tensor",
            lambda: list(tensorwise.parameters()),
            lambda: yardsticks.tensorwise_mean_(tensorwise.parameters()),
        ),
    ]


def ours(model: nn.Module) -> Contender:
    """Return LocalSGD with a period of one step, which also averages buffers."""
    sync, steps = LocalSGD(period=1), itertools.count(1)
    sync.setup(model, torch.optim.SGD(model.parameters()), Topology.create(), Dense())
    check = internals(sync).check_storage
    return Contender(
        OURS, lambda: list(model.parameters()), lambda: sync.after_step(next(steps)), target=TARGET, check=check
    )


def reduced(shapes: Sequence[torch.Size], device: torch.device) -> list[Contender]:
    """Return one contender per reducer. All average one flat tensor of these shapes; residuals stay between rounds."""
    flat = torch.empty(sum(shape.numel() for shape in shapes), device=device)
    pieces = [piece.view(shape) for piece, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
    return [_reduced(name, reducer.for_tensor(shapes), flat, pieces) for name, reducer in configured.reducers().items()]


def _reduced(name: str, reducer: Any, flat: Tensor, pieces: Sequence[Tensor]) -> Contender:
    comm = world_comm()
    return Contender(
        f"reducer={name}",
        lambda: pieces,
        lambda: reducer.mean_(flat, comm),
        reduces=True,
        unsent=(lambda: reducer.unsent(comm)) if reducer.traits.feeds_back else None,
        tolerance=max(1e-5, 2 * reducer.traits.rounding),
    )


def measured(model: str, contenders: Sequence[Contender], repeats: int, device: torch.device) -> list[Row]:
    """Check that every contender averages, time them, and return their rows. The first contender is the yardstick."""
    comm = world_comm()
    shapes = [tensor.shape for tensor in contenders[0].tensors()]
    weights = [torch.randn(shape, device=device) for shape in shapes]  # different on each rank
    counted = [_checked(contender, weights, comm) for contender in contenders]

    def timed(contender: Contender) -> float:
        _load(contender, weights)
        comm.barrier()
        return stopwatch(contender.average, device)

    yardstick, timings = contenders[0], dict[str, Timing]()
    # Reducers have rounds of their own: the more memory a round touches, the less a contender finds in the caches.
    for reducing in (False, True):
        others = [contender for contender in contenders[1:] if contender.reduces == reducing]
        turns = {one.name: functools.partial(timed, one) for one in (yardstick, *others)}
        timings = take_turns(turns, repeats, comm) | timings
    for contender in contenders:
        if contender.unsent is None:  # a reducer with a residual would now also send values of earlier rounds
            _checked(contender, weights, comm)
    return [
        _row(model, contender, timings[contender.name], counter, counted[0])
        for contender, counter in zip(contenders, counted, strict=True)
    ]


def _row(
    model: str,
    contender: Contender,
    timing: Timing,
    counter: yardsticks.CollectiveCounter,
    yardstick: yardsticks.CollectiveCounter,
) -> Row:
    check_s = None if contender.check is None else min(timeit.repeat(contender.check, number=CHECKS)) / CHECKS
    return {
        "model": model,
        "averaged_by": contender.name,
        "ms": timing.median_s * 1e3,
        "best_ms": timing.best_s * 1e3,
        **timing.ratios(),
        "target": contender.target,
        "payload_bytes": counter.payload_bytes,
        "wire_bytes": round(counter.wire_bytes),
        "wire_ratio": counter.wire_bytes / yardstick.wire_bytes,
        "calls": counter.calls,
        "check_us": None if check_s is None else check_s * 1e6,
        "check_ratio": None if check_s is None else check_s / timing.median_s,
    }


@torch.no_grad()
def _load(contender: Contender, weights: Sequence[Tensor]) -> None:
    """Write the parameters as an optimizer does after local steps, which leave the ranks different."""
    for tensor, values in zip(contender.tensors(), weights, strict=True):
        tensor.copy_(values)


@torch.no_grad()
def _checked(contender: Contender, weights: Sequence[Tensor], comm: Comm) -> yardsticks.CollectiveCounter:
    """Average once and return the collectives it used. Raise RuntimeError if the result is not the mean."""
    _load(contender, weights)
    counter = yardsticks.CollectiveCounter()
    with counter:
        contender.average()
    expected, result = _flat(weights), _flat(contender.tensors())
    with comm.uncounted():
        comm.all_reduce_(expected)
        if contender.unsent:
            unsent = contender.unsent()
            comm.all_reduce_(unsent)
            result += unsent / comm.size
    error = (result if contender.sums else result * comm.size) - expected
    if not error.norm() <= contender.tolerance * comm.size * _flat(weights).norm():
        raise RuntimeError(f"{contender.name} did not leave the mean over ranks")
    return counter


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
