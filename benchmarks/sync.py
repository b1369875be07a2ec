"""How long it takes to average a model's parameters."""

import argparse
import copy
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import yardsticks
from benchmarks.arguments import at_least
from benchmarks.outcome import Machine, Outcome, Row
from benchmarks.rounds import Timing, stopwatch, take_turns
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers import Cast, Dense, ErrorFeedback, Int8, PowerSGD, Reducer, Sign, Sparse, TopK
from ddp_agent.rng import seed_everything
from ddp_agent.sync import LocalSGD

SUMMARY = "averaging a model: this tree, torch, a collective per tensor, the raw all_reduce, and every reducer"
OURS = "this tree: LocalSGD, buffers too"
TARGET = 1.15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", type=_known, default=["resnet18", "resnet50"], metavar="NAME",
                        help="torchvision's classification models (resnet18 resnet50)")  # fmt: skip
    parser.add_argument("--repeats", type=at_least(1), default=60, help="rounds that count (60)")


def _known(name: str) -> str:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise argparse.ArgumentTypeError(f"found {name!r}, expected a classification model of torchvision")
    return name


def measure(arguments: argparse.Namespace, ranks: Runtime) -> Outcome:
    from torchvision import models

    created = {name: functools.partial(models.get_model, name, weights=None) for name in arguments.models}
    return compare(created, arguments.repeats, ranks)


def compare(models: Mapping[str, Callable[[], nn.Module]], repeats: int, ranks: Runtime) -> Outcome:
    rows: list[Row] = []
    for name, create in models.items():
        seed_everything(0, ranks.rank)
        model = create().to(ranks.device)
        through = reduced([parameter.shape for parameter in model.parameters()], ranks.device)
        rows += measured(name, [*contenders(model), *through], repeats, ranks.device)
    return Outcome(
        title="Averaging the parameters of a model, or through a reducer their changes, once",
        how=f"medians of {repeats} alternating rounds, time of the slowest rank; ratio: to the raw collective, in the "
        "same round; bytes and calls as c10d saw them, on the wire with bandwidth-optimal algorithms",
        machine=Machine.here(ranks),
        rows=rows,
    )


@dataclass(frozen=True)
class Contender:
    """`average` makes `tensors()` their mean over ranks; with `sums` only their sum; but for what is `unsent`.

    A mean is right when it is off by less than `tolerance` of the terms, in the root of the mean square.
    """

    name: str
    tensors: Callable[[], Sequence[Tensor]]
    average: Callable[[], None]
    sums: bool = False
    reduces: bool = False
    target: float | None = None
    unsent: Callable[[], Tensor] | None = None
    tolerance: float = 1e-5


def contenders(model: nn.Module) -> list[Contender]:
    """The first is the yardstick. Each has parameters of its own."""
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
    sync, steps = LocalSGD(period=1), itertools.count(1)
    sync.setup(model, torch.optim.SGD(model.parameters()), Topology.create(), Dense())
    return Contender(OURS, lambda: list(model.parameters()), lambda: sync.after_step(next(steps)), target=TARGET)


def reducers() -> dict[str, Reducer]:
    """As in conf/reducer."""
    return {
        "dense": Dense(),
        "bf16": Cast(dtype="bf16"),
        "fp16": Cast(dtype="fp16"),
        "int8": Int8(),
        "sign": Sign(),
        "sparse": Sparse(block=16),
        "topk": TopK(ratio=0.01),
        "powersgd": PowerSGD(rank=2),
    }


def reduced(shapes: Sequence[torch.Size], device: torch.device) -> list[Contender]:
    """Every reducer averages one tensor of these shapes, and keeps what it remembers of it from round to round."""
    flat = torch.empty(sum(shape.numel() for shape in shapes), device=device)
    pieces = [piece.view(shape) for piece, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
    return [_reduced(name, reducer.for_tensor(shapes), flat, pieces) for name, reducer in reducers().items()]


def _reduced(name: str, own: Reducer, flat: Tensor, pieces: Sequence[Tensor]) -> Contender:
    comm = world_comm()
    return Contender(
        f"reducer={name}",
        lambda: pieces,
        lambda: own.mean_(flat, comm),
        reduces=True,
        unsent=(lambda: own.unsent(comm)) if isinstance(own, ErrorFeedback) else None,
        tolerance=1e-2 if isinstance(own, Cast) else 1e-5,
    )


def measured(model: str, contenders: Sequence[Contender], repeats: int, device: torch.device) -> list[Row]:
    comm = world_comm()
    shapes = [tensor.shape for tensor in contenders[0].tensors()]
    weights = [torch.randn(shape, device=device) for shape in shapes]  # other ones on each rank
    counted = [_checked(contender, weights, comm) for contender in contenders]

    def timed(contender: Contender) -> float:
        _load(contender, weights)
        comm.barrier()
        return stopwatch(contender.average, device)

    yardstick, timings = contenders[0], dict[str, Timing]()
    # Reducers in rounds of their own: the more memory a round goes through, the less a contender finds in the caches.
    for reducing in (False, True):
        others = [contender for contender in contenders[1:] if contender.reduces == reducing]
        turns = {each.name: functools.partial(timed, each) for each in (yardstick, *others)}
        timings = take_turns(turns, repeats, comm) | timings
    for contender in contenders:
        if contender.unsent is None:  # it still averaged at the end; those that remember then send what is older, too
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
    return {
        "model": model,
        "averaged_by": contender.name,
        "ms": timing.median_s * 1e3,
        "best_ms": timing.best_s * 1e3,
        "ratio": timing.ratio,
        "ratio_q1": timing.ratio_q1,
        "ratio_q3": timing.ratio_q3,
        "target": contender.target,
        "payload_bytes": counter.payload_bytes,
        "wire_bytes": round(counter.wire_bytes),
        "wire_ratio": counter.wire_bytes / yardstick.wire_bytes,
        "calls": counter.calls,
    }


@torch.no_grad()
def _load(contender: Contender, weights: Sequence[Tensor]) -> None:
    """As after some local steps: ranks differ, and the optimizer has just written the parameters."""
    for tensor, values in zip(contender.tensors(), weights, strict=True):
        tensor.copy_(values)


@torch.no_grad()
def _checked(contender: Contender, weights: Sequence[Tensor], comm: Comm) -> yardsticks.CollectiveCounter:
    """What one averaging sends. RuntimeError if it does not average: there would be nothing to time."""
    _load(contender, weights)
    counter = yardsticks.CollectiveCounter()
    with counter:
        contender.average()
    expected, found = _flat(weights), _flat(contender.tensors())
    with comm.uncounted():
        comm.all_reduce_(expected)
        if contender.unsent:
            unsent = contender.unsent()
            comm.all_reduce_(unsent)
            found += unsent / comm.size
    error = (found if contender.sums else found * comm.size) - expected
    if not error.norm() <= contender.tolerance * comm.size * _flat(weights).norm():
        raise RuntimeError(f"{contender.name} did not leave the mean over ranks")
    return counter


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
