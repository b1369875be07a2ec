"""This tree beside what people would use instead, on the same work."""

import argparse
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from benchmarks import averaging, contenders, images, modes, starts
from benchmarks.arguments import at_least, multiple_of
from benchmarks.job import PERIOD, Job
from benchmarks.outcome import Outcome
from ddp_agent.data.datasets.fashion_mnist import FashionMNIST
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.errors import DataError

SUMMARY = "a step, an averaging and a cold start of this tree, hand-written loops, accelerate and Lightning"
PEERS = ("accelerate", "lightning")
PARTS = ("step", "averaging", "start", "images", "modes")
ON_GPU = ("images", "modes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(ranks=None)
    parser.add_argument("--repeats", type=at_least(1), default=25, help="rounds that count (25)")
    parser.add_argument("--steps", type=multiple_of(PERIOD), default=160, help="optimizer steps a round (160)")
    parser.add_argument("--starts", type=at_least(1), default=3, help="cold starts that count (3)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART",
                        help=f"of {' '.join(PARTS)} (all; without a GPU not {' and '.join(ON_GPU)})")  # fmt: skip
    parser.add_argument("--data-root", type=_fashion_mnist, metavar="DIR",
                        help="where Fashion-MNIST lies, for the images (without it they are made up)")  # fmt: skip


def measure(arguments: argparse.Namespace, ranks: Runtime) -> Iterator[Outcome]:
    peers = [name for name in PEERS if find_spec(name)]
    if ranks.rank == 0 and len(peers) < len(PEERS):
        print(missing(peers), flush=True)
    work = Job(
        rank=ranks.rank,
        size=ranks.world_size,
        local_size=ranks.local_world_size,
        device=ranks.device,
        steps=arguments.steps,
    )
    parts = arguments.only or _parts(ranks)
    if "step" in parts:
        yield contenders.measure(work, ranks, arguments.repeats, peers)
    if "averaging" in parts:
        yield averaging.measure(_resnet18, "resnet18", ranks, arguments.repeats, peers)
    if "start" in parts:
        yield starts.measure(work, ranks, arguments.starts, peers)
    if "images" in parts:
        yield images.measure(ranks, arguments.repeats, arguments.data_root)
    if "modes" in parts:
        yield from modes.measure(ranks, arguments.repeats)


def _parts(ranks: Runtime) -> Sequence[str]:
    if ranks.device.type == "cpu":
        return [part for part in PARTS if part not in ON_GPU]
    return PARTS if ranks.backend == "nccl" else ("modes",)  # peers want a GPU for each rank


def missing(found: list[str]) -> str:
    absent = ", ".join(name for name in PEERS if name not in found)
    return f"not installed, so not measured: {absent} (pip install -e '.[peers]')"


def _fashion_mnist(text: str) -> Path:
    try:
        FashionMNIST(data_root=Path(text), download=False, loss="cross_entropy").load()
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def _resnet18() -> nn.Module:
    from torchvision import models

    model: nn.Module = models.resnet18(weights=None)
    return model
