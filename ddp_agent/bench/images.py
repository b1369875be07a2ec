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
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ddp_agent.bench import step, yardsticks
from ddp_agent.bench.job import flat
from ddp_agent.bench.ours import train_for_ever
from ddp_agent.bench.outcome import Machine, Outcome, Row
from ddp_agent.bench.paused import Paused
from ddp_agent.bench.rounds import stopwatch, take_turns
from ddp_agent.comm import Comm
from ddp_agent.datasets.base import normalise, resident_classification
from ddp_agent.datasets.fashion_mnist import MEAN, SIZE, STD, FashionMNIST
from ddp_agent.loader import SampleOrder
from ddp_agent.models.cnn import CNN
from ddp_agent.optimizers import SGD
from ddp_agent.reducers import Dense
from ddp_agent.runtime import Runtime
from ddp_agent.schedules import Constant
from ddp_agent.sync import AllReduce, Independent, SyncStrategy
from ddp_agent.topology import Topology
from ddp_agent.trainer import Trainer

Batch = tuple[Tensor, Tensor]

WORKERS = 4
BARE_LOOP = "bare loop, resident data"
BARE, DECODING = 0.98, 10.0  # at least so much of the trainer's time
AGREEMENT = 0.5  # of the change of the parameters, after a round in bf16: a loop that does nothing is off by 1


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is trained, and on what. `pixels`: the grey images as bytes, for the loop that decodes them."""

    name: str
    create: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    batch: int
    steps: int
    pixels: Tensor | None = None
    compiled: bool = True


def measure(ranks: Runtime, repeats: int, data_root: Path | None) -> Outcome:
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


def resnet50() -> Pictures:
    def create() -> nn.Module:
        from torchvision import models

        model: nn.Module = models.resnet50(weights=None)
        return model

    samples = 1024
    return Pictures(
        name="ResNet-50, synthetic 224 x 224",
        create=create,
        inputs=torch.randn(samples, 3, 224, 224),
        targets=torch.randint(1000, (samples,)),
        batch=128,
        steps=20,
    )


def fashion_cnn(data_root: Path | None) -> Pictures:
    """As in conf/model/cnn.yaml."""
    if data_root is None:
        pixels, targets = torch.randint(256, (60_000, *SIZE), dtype=torch.uint8), torch.randint(10, (60_000,))
    else:
        task = FashionMNIST(data_root=data_root, download=False, loss="cross_entropy").load()
        assert isinstance(task.train, TensorDataset)
        inputs, targets = task.train.tensors
        pixels = ((inputs.squeeze(1) * STD + MEAN) * 255).round().to(torch.uint8)
    return Pictures(
        name="cnn, Fashion-MNIST" if data_root else "cnn, synthetic 28 x 28",
        create=lambda: CNN(input_shape=(1, *SIZE), outputs=10, channels=(32, 64), hidden=64),
        inputs=normalise(pixels, MEAN, STD).unsqueeze(1),
        targets=targets,
        batch=256,
        steps=100,
        pixels=pixels,
    )


def compare(pictures: Pictures, ranks: Runtime, repeats: int, workers: int) -> list[Row]:
    comm = Comm.world()
    with ExitStack() as until_closed:
        loops: dict[str, tuple[Callable[[int], None], nn.Module, float | None]] = {}
        trainer = new_trainer(pictures, ranks)
        paused = Paused(functools.partial(train_for_ever, trainer), ranks.device)
        until_closed.callback(paused.close)
        loops["this tree: trainer"] = paused, trainer.module, None
        bare = Loop(pictures, ranks, resident(pictures, ranks))
        loops[BARE_LOOP] = bare, bare.module, BARE
        if pictures.pixels is not None:
            decoding = Loop(pictures, ranks, decoded(pictures, ranks, workers))
            loops["the same loop, DataLoader with PIL transforms"] = decoding, decoding.module, DECODING
        check_agreement(pictures, {name: (run, module) for name, (run, module, _) in loops.items()}, ranks.device)

        def timed(run: Callable[[int], None]) -> float:
            return stopwatch(lambda: run(pictures.steps), ranks.device)

        turns = {name: functools.partial(timed, run) for name, (run, _, _) in loops.items()}
        timings = take_turns(turns, repeats, comm)
    return [
        {
            "model": pictures.name,
            "loop": name,
            "ms_a_step": timing.median_s / pictures.steps * 1e3,
            "images_per_s": round(pictures.batch * comm.size * pictures.steps / timing.median_s),
            "ratio": timing.ratio,
            "ratio_q1": timing.ratio_q1,
            "ratio_q3": timing.ratio_q3,
            "target": loops[name][2],
        }
        for name, timing in timings.items()
    ]


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
        task=resident_classification(
            (pictures.inputs, pictures.targets), few, outputs=int(pictures.targets.max()) + 1, loss="cross_entropy"
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


def resident(pictures: Pictures, ranks: Runtime) -> Iterator[Batch]:
    inputs = pictures.inputs.to(ranks.device, memory_format=torch.channels_last)
    targets = pictures.targets.to(ranks.device)
    for indices in share(pictures, ranks, ranks.device):
        yield inputs[indices], targets[indices]  # unlike index_select, it keeps channels last


def decoded(pictures: Pictures, ranks: Runtime, workers: int) -> Iterator[Batch]:
    """It reads ahead while others have their turn, about 8 batches of a round."""
    device = ranks.device
    assert pictures.pixels is not None
    loader = DataLoader(
        Decoded(pictures.pixels, pictures.targets),
        batch_sampler=(indices.tolist() for indices in share(pictures, ranks, torch.device("cpu"))),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for inputs, targets in loader:
        yield (
            inputs.to(device, non_blocking=True, memory_format=torch.channels_last),
            targets.to(device, non_blocking=True),
        )


def share(pictures: Pictures, ranks: Runtime, device: torch.device) -> Iterator[Tensor]:
    """The samples of each step, the same that the trainer takes."""
    order = SampleOrder(len(pictures.inputs), step.options_for(1).seed, device)
    for number in itertools.count():
        yield order.take((number * ranks.world_size + ranks.rank) * pictures.batch, pictures.batch)


class Decoded(Dataset[tuple[Tensor, int]]):
    """As torchvision's FashionMNIST with the transforms of its tutorials."""

    def __init__(self, pixels: Tensor, targets: Tensor) -> None:
        from torchvision import transforms

        self.pixels = pixels
        self.targets = targets
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        image = Image.fromarray(self.pixels[index].numpy(), mode="L")
        return self.transform(image), int(self.targets[index])


def check_agreement(
    pictures: Pictures, loops: Mapping[str, tuple[Callable[[int], None], nn.Module]], device: torch.device
) -> None:
    """Trains a round. RuntimeError when a loop's parameters did not go where the bare loop's went."""
    start = flat(new_module(pictures, device).parameters())
    changes = {}
    for name, (run, module) in loops.items():
        run(pictures.steps)
        changes[name] = flat(module.parameters()) - start
    expected = changes[BARE_LOOP]
    for name, change in changes.items():
        if not (change - expected).norm() <= AGREEMENT * expected.norm():
            raise RuntimeError(f"{name} did not train {pictures.name} as the bare loop did")
