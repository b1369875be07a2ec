"""Properties of every dataset, and the datasets that need no files."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from configs import files, node
from resident import check
from torch import Tensor

from ddp_agent.config.registry import build, problems
from ddp_agent.data.augment import crop_and_flip
from ddp_agent.data.classification import LOSSES, accuracy, half_squared_error
from ddp_agent.data.datasets.article import Article
from ddp_agent.data.datasets.digits import DATA, Digits, stratified_split
from ddp_agent.data.readers.idx import read_idx
from ddp_agent.data.task import fingerprint
from ddp_agent.errors import ConfigError


@pytest.mark.parametrize("name", files("dataset"))
def test_every_yaml_has_exactly_the_keys_of_its_class(name: str) -> None:
    assert problems("dataset", node("dataset", name), runtime=["data_root"]) == []


def test_bad_values_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.samples: found 0, expected an integer >= 1"):
        build("dataset", node("dataset", "article", samples=0))
    with pytest.raises(ConfigError, match=r"dataset.loss: found 'hinge', expected one of cross_entropy, half_squared"):
        build("dataset", node("dataset", "digits", loss="hinge"))
    with pytest.raises(ConfigError, match=r"data_root: found None, expected a path"):
        build("dataset", node("dataset", "fashion_mnist"), data_root=None)


def test_torchvision_is_only_imported_where_it_is_used() -> None:
    code = """
import importlib, pkgutil, sys
import ddp_agent.data.datasets, ddp_agent.models
for package in (ddp_agent.data.datasets, ddp_agent.models):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from ddp_agent.data.datasets.digits import Digits
Digits(loss="cross_entropy").load()
print(*sorted({"torchvision", "PIL", "sklearn"} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


# Losses and metric


def test_half_squared_error_is_the_articles() -> None:
    output = torch.tensor([[0.5, 1.0, -1.0], [2.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = half_squared_error(output, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((0.5 * (0.25 + 0 + 1) + 0.5 * (1 + 0 + 0)) / 2)
    torch.autograd.backward(loss)
    expected = torch.tensor([[0.5, 0.0, -1.0], [1.0, 0.0, 0.0]], dtype=torch.float64) / 2  # (output - one hot) / batch
    torch.testing.assert_close(output.grad, expected)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_losses_are_means_over_the_batch(loss: str) -> None:
    output, target = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    criterion = LOSSES[loss]  # type: ignore[index]
    halves = (criterion(output[:3], target[:3]) + criterion(output[3:], target[3:])) / 2
    torch.testing.assert_close(criterion(output, target), halves)


def test_accuracy_is_one_number_a_sample() -> None:
    output = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert accuracy(output, torch.tensor([1, 1, 1])).tolist() == [1.0, 0.0, 1.0]


def test_fingerprint_sees_values_types_and_shapes() -> None:
    base = torch.arange(6.0)
    others = [base.clone(), base.view(2, 3), base.double(), base.flip(0), -base]
    assert fingerprint(base) == fingerprint(others[0])
    assert len({fingerprint(other) for other in others}) == 5


# digits


def test_digits_are_the_published_ones() -> None:
    labels = read_idx(DATA / "digits-labels-idx1-ubyte.gz", "labels")
    images = read_idx(DATA / "digits-images-idx3-ubyte.gz", "images")
    assert images.shape == (1797, 8, 8) and images.max() == 16
    # Test part of the UCI data set's documentation, "No of examples in testing set".
    assert labels.long().bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 100_000
    licence = (DATA / "README.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in licence and "Alpaydin" in licence and "archive.ics.uci.edu" in licence


def test_digits_split_is_stratified_and_loses_nothing() -> None:
    labels = read_idx(DATA / "digits-labels-idx1-ubyte.gz", "labels").long()
    train, test = stratified_split(labels, 0.2, seed=1)
    assert torch.cat([train, test]).sort().values.tolist() == list(range(1797))
    assert labels[test].bincount().tolist() == [round(0.2 * count) for count in labels.bincount().tolist()]
    other = stratified_split(labels, 0.2, seed=2)[1]
    assert set(test.tolist()) != set(other.tolist())


def test_digits_do_not_depend_on_the_runs_seed() -> None:
    hashes = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        hashes.add(Digits(loss="cross_entropy").load().data.sha256)
    assert len(hashes) == 1
    task = Digits(loss="half_squared_error").load()
    check(task, input_shape=(1, 8, 8), outputs=10, train=1438, test=359)
    assert task.objective.loss is half_squared_error


# article


def test_article_is_the_same_for_every_seed_and_nearly_separable() -> None:
    hashes = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        task = build("dataset", node("dataset", "article")).load()
        hashes.add(task.data.sha256)
    assert len(hashes) == 1
    check(task, input_shape=(10,), outputs=2, train=1000, test=1000)
    assert task.objective.loss is half_squared_error
    (inputs, labels), (test_inputs, test_labels) = task.data.train.tensors, task.data.test.tensors
    weights = torch.linalg.lstsq(with_bias(inputs), torch.eye(2)[labels]).solution  # what half squared error leads to
    right = accuracy(with_bias(test_inputs) @ weights, test_labels).mean()
    assert right > 0.96
    assert abs(right - 0.5 * (1 + math.erf(2.3 / math.sqrt(2)))) < 0.01


def with_bias(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)


def test_article_parts_are_different_draws() -> None:
    task = Article(samples=50, test_samples=50, features=3, separation=1.0, loss="cross_entropy").load()
    assert not torch.equal(task.data.train[:][0], task.data.test[:][0])


# Augmentation


def test_crop_and_flip_gives_shifted_or_mirrored_images() -> None:
    images = torch.randn(60, 3, 6, 5)
    torch.manual_seed(0)
    changed = crop_and_flip(images, padding=1)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    windows = {
        (row, column, mirrored): window.flip(3) if mirrored else window
        for row in range(3)
        for column in range(3)
        for mirrored in (False, True)
        for window in [padded[:, :, row : row + 6, column : column + 5]]
    }
    used = [{key for key, window in windows.items() if torch.equal(window[i], changed[i])} for i in range(len(images))]
    assert all(len(keys) == 1 for keys in used)
    assert len(set.union(*used)) > 12  # of 18, in 60 draws
    torch.manual_seed(0)
    assert torch.equal(crop_and_flip(images, padding=1), changed)
    assert not torch.equal(crop_and_flip(images, padding=1), changed)


def test_the_dataset_in_the_documentation_is_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "applications.md").read_text(encoding="utf-8")
    (tmp_path / "flowers.py").write_text(text.partition("```python\n")[2].partition("```")[0], encoding="utf-8")
    (tmp_path / "flowers.csv").write_text("".join(f"{n},{n + 1},{n + 2},{n + 3},{n % 3}\n" for n in range(12)))
    monkeypatch.syspath_prepend(tmp_path)
    given = {"name": "flowers:Flowers", "loss": "cross_entropy"}
    task = build("dataset", given, trusted_packages=["flowers"], data_root=tmp_path).load()
    assert (task.data.train_count, task.data.test_count, task.data.input_shape) == (6, 6, (4,))
    assert task.objective.loss(torch.zeros(6, 3), task.data.train[:][1]).item() == pytest.approx(math.log(3))
