"""The trainer on images: beside the compiled loop one would write for one model, and beside one that decodes."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import step, yardsticks
from benchmarks.job import flat
from benchmarks.ours import train_for_ever
from benchmarks.outcome import Machine, Outcome, Row
from benchmarks.paused import Paused
from benchmarks.pictures import Batch, Pictures, decoded, fashion_cnn, resident, resnet50
from benchmarks.rounds import stopwatch, take_turns
from ddp_agent.data.classification import classification
from ddp_agent.data.task import Data
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers import Dense
from ddp_agent.rng import seed_everything
from ddp_agent.sync import AllReduce, Independent, SyncStrategy
from ddp_agent.training.optimizers import SGD
from ddp_agent.training.schedules import Constant
from ddp_agent.training.trainer import Trainer

WORKERS = 4
BARE_LOOP, DECODING_LOOP = "bare loop, resident data", "the same loop, DataLoader with PIL transforms"
BARE, DECODING = 0.98, 10.0  # at least so much of the trainer's time
AGREEMENT = 0.5  # of the change of the parameters, after a round in bf16: a loop that does nothing is off by 1


def measure(ranks: Runtime, repeats: int, data_root: Path | None) -> Outcome:
    seed_everything(0)  # made-up images are the same on all ranks, as real ones are
    pictures = [resnet50(), fashion_cnn(data_root)]
    machine = Machine.here(ranks)
    workers = min(WORKERS, machine.cores)
    return Outcome(
        title="An optimizer step on images: bf16, channels-last, compiled",
        how=f"medians of {repeats} alternating rounds, time of the slowest rank; ratio: to the trainer, in the same "
        f"round, target: at least; DataLoader with {workers} workers and torchvision's ToTensor and Normalize of PIL "
        "images",
        machine=machine,
        rows=[row for each in pictures for row in compare(each, ranks, repeats, workers)],
    )


@dataclass(frozen=True, kw_only=True)
class Contender:
    run: Callable[[int], None]
    module: nn.Module
    target: float | None = None


def compare(pictures: Pictures, ranks: Runtime, repeats: int, workers: int) -> list[Row]:
    with ExitStack() as until_closed:
        contenders = dict(create(pictures, ranks, workers, until_closed))
        check_agreement(pictures, contenders, ranks.device)

        def timed(contender: Contender) -> float:
            return stopwatch(lambda: contender.run(pictures.steps), ranks.device)

        turns = {name: functools.partial(timed, contender) for name, contender in contenders.items()}
        timings = take_turns(turns, repeats, world_comm())
    return [
        {
            "model": pictures.name,
            "loop": name,
            "ms_a_step": timing.median_s / pictures.steps * 1e3,
            "images_per_s": round(pictures.batch * ranks.world_size * pictures.steps / timing.median_s),
            "ratio": timing.ratio,
            "ratio_q1": timing.ratio_q1,
            "ratio_q3": timing.ratio_q3,
            "target": contenders[name].target,
        }
        for name, timing in timings.items()
    ]


def create(
    pictures: Pictures, ranks: Runtime, workers: int, until_closed: ExitStack
) -> Iterator[tuple[str, Contender]]:
    """The first is the yardstick."""
    trainer = new_trainer(pictures, ranks)
    paused = Paused(functools.partial(train_for_ever, trainer), ranks.device)
    until_closed.callback(paused.close)
    yield "this tree: trainer", Contender(run=paused, module=trainer.module)
    bare = Loop(pictures, ranks, resident(pictures, ranks))
    yield BARE_LOOP, Contender(run=bare, module=bare.module, target=BARE)
    if pictures.pixels is not None:
        decoding = Loop(pictures, ranks, decoded(pictures, ranks, workers))
        yield DECODING_LOOP, Contender(run=decoding, module=decoding.module, target=DECODING)


def new_module(pictures: Pictures, device: torch.device) -> nn.Module:
    """With the same weights for all."""
    torch.manual_seed(0)
    module: Any = pictures.create().to(device)  # torch 2.11's types know no memory format
    channels_last: nn.Module = module.to(memory_format=torch.channels_last)
    return channels_last


def new_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4).create(module.parameters())


def new_trainer(pictures: Pictures, ranks: Runtime) -> Trainer:
    """Channels-last is the model's doing alone: the trainer keeps the strides of its parameters."""
    topology, module = Topology.create(), new_module(pictures, ranks.device)
    few = pictures.inputs[:1], pictures.targets[:1]
    sync: SyncStrategy = AllReduce() if topology.world.size > 1 else Independent()
    return Trainer(
        options=replace(
            step.options_for(pictures.batch * topology.world.size), precision="bf16", compile=pictures.compiled
        ),
        total_steps=0,
        task=classification(
            Data.resident((pictures.inputs, pictures.targets), few),
            outputs=int(pictures.targets.max()) + 1,
            loss="cross_entropy",
        ),
        module=module,
        optimizer=new_optimizer(module),
        schedule=Constant(warmup_steps=0),
        sync=sync,
        reducer=Dense(),
        topology=topology,
        device=ranks.device,
        fingerprint={},
    )


class Loop:
    """What one would write for this model, with nothing to spare."""

    def __init__(self, pictures: Pictures, ranks: Runtime, batches: Iterator[Batch]) -> None:
        self.module = new_module(pictures, ranks.device)
        if pictures.compiled:
            self.module.compile()
        self.model = yardsticks.ddp(self.module) if ranks.world_size > 1 else self.module
        self.optimizer = new_optimizer(self.module)
        self.batches = batches
        self.device = ranks.device

    def __call__(self, steps: int) -> None:
        for inputs, targets in itertools.islice(self.batches, steps):
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss = F.cross_entropy(self.model(inputs), targets)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def check_agreement(pictures: Pictures, contenders: Mapping[str, Contender], device: torch.device) -> None:
    """Trains a round. RuntimeError when a loop's parameters did not go where the bare loop's went."""
    start = flat(new_module(pictures, device).parameters())
    changes = {}
    for name, contender in contenders.items():
        contender.run(pictures.steps)
        changes[name] = flat(contender.module.parameters()) - start
    expected = changes[BARE_LOOP]
    for name, change in changes.items():
        if not (change - expected).norm() <= AGREEMENT * expected.norm():
            raise RuntimeError(f"{name} did not train {pictures.name} as the bare loop did")
