"""The throughput that synchronising costs, on the link that the ranks have."""

import argparse
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.arguments import at_least
from benchmarks.outcome import Machine, Outcome
from benchmarks.rounds import stopwatch, take_turns
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.topology import Topology
from ddp_agent.models.cnn import CNN
from ddp_agent.reducers import Dense
from ddp_agent.rng import seed_everything
from ddp_agent.sync import AllReduce, DiLoCo, Independent, StreamingDiLoCo, SyncStrategy

SUMMARY = "throughput of streaming_diloco, diloco and allreduce against independent, on the link between the ranks"
SHAPE = (1, 28, 28)
OUTPUTS = 10
HIDDEN = 64  # conf/model/cnn.yaml's: 220,234 parameters
TARGETS = {"streaming_diloco": 1 / 0.95}  # where its delay is long enough for the link


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--repeats", type=at_least(1), default=8, help="rounds that count (8)")
    parser.add_argument("--period", type=at_least(2), default=128, help="H, and the steps per round (128)")
    parser.add_argument("--delay", type=at_least(1), default=24, help="steps that a fragment has to arrive (24)")
    parser.add_argument("--batch", type=at_least(1), default=32, help="images per rank (32)")


def measure(arguments: argparse.Namespace, ranks: Runtime) -> Outcome:
    """Time one period of each of the four modes per round."""
    period = arguments.period
    modes = {
        "independent": Independent(),
        "streaming_diloco": StreamingDiLoCo(period=period, fragments=2, delay=arguments.delay),
        "diloco": DiLoCo(period=period),
        "allreduce": AllReduce(),
    }
    loops = {name: loop(sync, arguments.batch, ranks) for name, sync in modes.items()}

    def timed(run: Callable[[int], None]) -> Callable[[], float]:
        return lambda: stopwatch(lambda: run(period), ranks.device)

    timings = take_turns({name: timed(run) for name, run in loops.items()}, arguments.repeats, world_comm())
    return Outcome(
        title=f"A training step of a CNN on {SHAPE[1]} x {SHAPE[2]} images, {arguments.batch} per rank",
        how=f"medians of {arguments.repeats} alternating rounds of {period} steps (one period), time of the slowest "
        "rank; ratio: to independent, in the same round",
        machine=Machine.here(ranks),
        rows=[
            {
                "sync": name,
                "ms_per_step": timing.median_s / period * 1e3,
                **timing.ratios(),
                "target": TARGETS.get(name),
                "throughput_percent": 100 / timing.ratio,
            }
            for name, timing in timings.items()
        ],
    )


def loop(sync: SyncStrategy, batch: int, ranks: Runtime) -> Callable[[int], None]:
    """Return a function that trains a CNN for so many more steps. Data are random, since only time matters."""
    seed_everything(0, ranks.rank)
    inputs = torch.randn(batch, *SHAPE, device=ranks.device)
    targets = torch.randint(OUTPUTS, (batch,), device=ranks.device)
    model: nn.Module = CNN(input_shape=SHAPE, outputs=OUTPUTS, channels=(32, 64), hidden=HIDDEN).to(ranks.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    wrapped = sync.setup(model, optimizer, Topology.create(), Dense())
    done = 0

    def run(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            done += 1
            with sync.backward_context(done, last_micro_batch=True):
                nn.functional.cross_entropy(wrapped(inputs), targets).backward()
            sync.before_step(done)
            optimizer.step()
            sync.after_step(done)
            optimizer.zero_grad(set_to_none=True)

    return run
