"""Optional parts of a task beside data, loss and metric, in whole runs."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_pool import RankPool
from runs import config, mode, run
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ddp_agent.checkpoint import export
from ddp_agent.data.classification import classification
from ddp_agent.data.task import Data, Task
from ddp_agent.errors import ConfigError, DataError
from ddp_agent.training.model import create_model
from ddp_agent.training.settings import parse


def tripled(inputs: Tensor) -> Tensor:
    return 3.0 * inputs


def with_inputs(task: Task, change: Any) -> Task:
    train, test = (TensorDataset(change(part[:][0]), part[:][1]) for part in (task.data.train, task.data.test))
    return replace(task, data=replace(task.data, train=train, test=test))


def stored_tripled(task: Task) -> Task:
    return with_inputs(task, tripled)


def transformed(task: Task) -> Task:
    return replace(task, data=replace(task.data, transform=tripled))


@pytest.mark.parametrize(
    "options", [(), ("model=resnet20", "max_steps=2", "sync.buffers=recalibrate", "evaluate_own=true")], ids=len
)
def test_a_transform_is_as_if_the_data_had_been_stored_so(
    ranks2: RankPool, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The transform applies in training, evaluation and recalibration."""
    plain, stored, applied = (
        ranks2.run(run, *mode("local_sgd", *options), str(tmp_path / str(i)), 0, change)[0]
        for i, change in enumerate((same, stored_tripled, transformed))
    )
    assert applied["test_loss"] == stored["test_loss"] != plain["test_loss"]
    assert applied["test_metric"] == stored["test_metric"]


def same(task: Task) -> Task:
    return task


def as_float(inputs: Tensor) -> Tensor:
    return inputs.float()


def noisy(inputs: Tensor) -> Tensor:
    return inputs + 10 * torch.randn(inputs.shape, dtype=inputs.dtype)  # which no integers can be given


def integers(task: Task) -> Task:
    small = with_inputs(task, Tensor.short)
    return replace(small, data=replace(small.data, transform=as_float))


def integers_with_noise(task: Task) -> Task:
    plain = integers(task)
    return replace(plain, data=replace(plain.data, augment=noisy))


def test_augmentation_changes_what_was_transformed_and_only_in_training(ranks2: RankPool, tmp_path: Path) -> None:
    plain, augmented = (
        ranks2.run(run, *mode("allreduce", "optimizer.lr=0.1"), str(tmp_path / str(i)), 0, change)[0]
        for i, change in enumerate((integers, integers_with_noise))
    )
    assert augmented["test_loss"] != plain["test_loss"]
    still = ranks2.run(run, *mode("allreduce", "optimizer.lr=1e-30"), str(tmp_path / "2"), 0, integers)[0]
    noise = ranks2.run(run, *mode("allreduce", "optimizer.lr=1e-30"), str(tmp_path / "3"), 0, integers_with_noise)[0]
    assert noise["test_loss"] == still["test_loss"]


def square_root(task: Task) -> Task:
    return replace(task, objective=replace(task.objective, finish=math.sqrt))


def test_a_metric_may_be_finished_after_the_mean(ranks2: RankPool, tmp_path: Path) -> None:
    plain, finished = (
        ranks2.run(run, *mode("allreduce"), str(tmp_path / str(i)), 0, change)[0]
        for i, change in enumerate((same, square_root))
    )
    assert 0 < plain["test_metric"] < 1
    assert finished["test_metric"] == pytest.approx(math.sqrt(plain["test_metric"]), rel=1e-12)
    assert finished["test_loss"] == plain["test_loss"]


class Wordy(nn.Module):
    """Asks for a vocabulary."""

    def __init__(self, *, input_shape: tuple[int, ...], outputs: int, vocabulary: int) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(input_shape), outputs)
        self.words = nn.Embedding(vocabulary, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.linear(inputs.flatten(1)) + self.words.weight.sum(0)
        return found


def with_words(task: Task) -> Task:
    return replace(task, model_arguments={"vocabulary": 23, "users": 5})


def wordy() -> tuple[dict[str, Any], dict[str, str]]:
    cfg, choices = config("trusted_packages=[test_task]")
    return cfg | {"model": {"name": "test_task:Wordy"}}, choices


def test_a_model_is_told_what_it_asks_for_and_is_exported_with_it(ranks2: RankPool, tmp_path: Path) -> None:
    summary = ranks2.run(run, *wordy(), str(tmp_path), 0, with_words)[0]
    assert isinstance(summary, dict), summary
    model = export.load(tmp_path, trusted_packages=["test_task"])
    assert model.words.weight.shape == (23, 10)  # type: ignore[union-attr]


def test_a_model_that_asks_for_what_the_data_lack_is_refused() -> None:
    cfg, choices = wordy()
    settings = parse(cfg, choices=choices, world_size=1)
    with pytest.raises(ConfigError, match=r"must be told vocabulary by the data, which digits does not have"):
        create_model(settings, settings.dataset.load())


def test_embedded_digits_have_labels_and_names() -> None:
    cfg, choices = config()
    task = parse(cfg, choices=choices, world_size=1).dataset.load()
    assert torch.equal(task.data.labels, task.data.train[:][1])
    assert task.presentation.class_names == tuple("0123456789") and task.data.groups is None


@pytest.mark.parametrize("labels", [[1, 2, 3], [0, 1, -1]])
@pytest.mark.parametrize("part", ["train on", "test"])
def test_labels_that_do_not_start_at_0_are_refused(labels: list[int], part: str) -> None:
    """A user's own dataset may have such labels; training would end in an error of torch."""
    inputs, right, wrong = torch.zeros(3, 2), torch.tensor([0, 1, 2]), torch.tensor(labels)
    train, test = (wrong, right) if part == "train on" else (right, wrong)
    with pytest.raises(
        DataError, match=rf"labels to {part}: found {min(labels)} to {max(labels)}, expected 0 to 2: 3 cl"
    ):
        classification(Data.resident((inputs, train), (inputs, test)), outputs=3, loss="cross_entropy")
    classification(Data.resident((inputs, right), (inputs, right)), outputs=3, loss="cross_entropy")
