"""Images to train on: made up or Fashion-MNIST, resident on the device or decoded as they are needed."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks import step
from ddp_agent.data.datasets.fashion_mnist import MEAN, SIZE, STD, FashionMNIST
from ddp_agent.data.readers.images import normalise
from ddp_agent.data.sample_order import SampleOrder
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.models.cnn import CNN

Batch = tuple[Tensor, Tensor]


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
        assert isinstance(task.data.train, TensorDataset)
        inputs, targets = task.data.train.tensors
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

        image = Image.fromarray(self.pixels[index].numpy())
        return self.transform(image), int(self.targets[index])
