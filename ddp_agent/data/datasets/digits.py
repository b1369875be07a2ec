"""Handwritten digits (Alpaydin and Kaynak 1998), embedded; embedded/README.md has source and licence."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddp_agent.config.fields import check_fields
from ddp_agent.data.classification import LossName, classification
from ddp_agent.data.readers.idx import read_idx
from ddp_agent.data.task import Data, Presentation, Task

DATA = Path(__file__).parent / "embedded"
CLASSES = 10
MEAN, STD = 4.9, 6.0  # of all pixels, which are 0 to 16
SPLIT_SEED = 1998  # never the run's: every run is tested on the same digits
TEST_SHARE = 0.2


@dataclass(kw_only=True)
class Digits:
    """1,797 handwritten digits of 8 x 8 pixels (UCI), embedded: nothing to download."""

    loss: LossName

    def __post_init__(self) -> None:
        check_fields(self)

    def load(self) -> Task:
        """Return the task, with a fifth of each digit as test samples."""
        images = read_idx(DATA / "digits-images-idx3-ubyte.gz", "images")
        labels = read_idx(DATA / "digits-labels-idx1-ubyte.gz", "labels").long()
        inputs = images.float().sub_(MEAN).div_(STD).unsqueeze(1)
        train, test = stratified_split(labels, TEST_SHARE, SPLIT_SEED)
        return classification(
            Data.resident((inputs[train], labels[train]), (inputs[test], labels[test])),
            outputs=CLASSES,
            loss=self.loss,
            presentation=Presentation(class_names=tuple("0123456789")),
        )


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the training and of the test samples, with `share` of every class in the test part."""
    generator = torch.Generator().manual_seed(seed)
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(labels.bincount().tolist()):
        members = (labels == label).nonzero().flatten()
        chosen = torch.randperm(count, generator=generator)[: round(share * count)]
        in_test[members[chosen]] = True
    return (~in_test).nonzero().flatten(), in_test.nonzero().flatten()
