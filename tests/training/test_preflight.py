"""The check of what a model and a task return, before any rank trains."""

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from rank_pool import RankPool
from runs import config, run
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ddp_agent.checkpoint.export import load
from ddp_agent.data.classification import classification
from ddp_agent.data.loader import Batch
from ddp_agent.data.task import Data, Objective, Task
from ddp_agent.errors import ConfigError, NonFiniteError
from ddp_agent.training import preflight
from ddp_agent.training.preflight import Preflight
from ddp_agent.training.session import Session

CPU = torch.device("cpu")
MICRO = 6
Change = Callable[[Task], Task]


def classes(batch: int = 20) -> Task:
    inputs, target = torch.randn(batch, 4, generator=torch.Generator().manual_seed(0)), torch.arange(batch) % 3
    return classification(Data.resident((inputs, target), (inputs, target)), outputs=3, loss="cross_entropy")


def numbers() -> Task:
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    target = inputs.sum(1, keepdim=True)
    objective = Objective(
        outputs=1,
        loss=F.mse_loss,
        metric=lambda output, target: (output - target).square().mean(1),
        metric_name="mse",
        higher_is_better=False,
    )
    return Task(data=Data.resident((inputs, target), (inputs, target)), objective=objective)


def check(task: Task, module: nn.Module, micro_batch: int = MICRO, **options: Any) -> None:
    inputs, target = task.data.train[:micro_batch]
    batches: Iterator[Batch] = iter([(inputs, target)])
    Preflight(task, module, CPU, nullcontext, **options).check(batches, preflight.test_sizes(task, micro_batch))


def objective(task: Task, **changes: Any) -> Task:
    return replace(task, objective=replace(task.objective, **changes))


class Returns(nn.Module):
    """A model of 4 inputs that returns whatever `change` makes of `outputs` numbers."""

    def __init__(self, change: Callable[[Tensor], Any] = lambda output: output, outputs: int = 3) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(4, outputs), change

    def forward(self, inputs: Tensor) -> Any:
        return self.change(self.linear(inputs))


@dataclass
class Named:
    logits: Tensor


class Asks(nn.Linear):
    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(inputs * mask)


class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.lineer(inputs)  # type: ignore[no-any-return,operator]


def half(output: Tensor, target: Tensor) -> Tensor:
    """A loss that is a mean already, and is divided by the batch once more in users' code."""
    return F.cross_entropy(output, target, reduction="sum") / 20


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    """A loss with the other samples as negatives: it grows with their number, and is right."""
    return F.cross_entropy(output @ output.T, torch.arange(len(output)))


def weighted(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, weight=torch.tensor([1.0, 5.0, 0.1]), label_smoothing=0.1)


WRONG_TASKS: dict[str, tuple[Callable[[], Task], str]] = {
    "a metric that is a mean": (
        lambda: objective(numbers(), metric=F.mse_loss),
        r"its metric mse returns float32 \[\] for 6 samples, expected one number per sample",
    ),
    "a metric with a column per class": (
        lambda: objective(classes(), metric=lambda output, target: output.softmax(1)),
        r"its metric accuracy returns float32 \[6, 3\]",
    ),
    "a metric that is a float": (
        lambda: objective(classes(), metric=lambda output, target: 0.5),
        "its metric accuracy returns float for 6 samples",
    ),
    "a further metric that is a sum": (
        lambda: objective(classes(), more_metrics={"hits": lambda output, target: (output.argmax(1) == target).sum()}),
        r"its metric hits returns int64 \[\]",
    ),
    "a metric that fails": (
        lambda: objective(classes(), metric=lambda output, target: output[:, 7]),
        "its metric accuracy fails for outputs .*IndexError",
    ),
    "a loss that is a sum": (
        lambda: objective(classes(), loss=lambda output, target: F.cross_entropy(output, target, reduction="sum")),
        "its loss grows with the number of samples, 2 times",
    ),
    "a loss that is a sum over a constant": (lambda: objective(classes(), loss=half), "grows with the number"),
    "only the training loss is a sum": (
        lambda: objective(classes(), train_loss=lambda o, t: F.cross_entropy(o, t, reduction="sum")),
        "grows with the number",
    ),
    "a loss per sample": (
        lambda: objective(classes(), loss=lambda o, t: F.cross_entropy(o, t, reduction="none")),
        r"its loss returns float32 \[6\]",
    ),
    "a loss of one element": (
        lambda: objective(classes(), loss=lambda o, t: F.cross_entropy(o, t)[None]),
        r"its loss returns float32 \[1\]",
    ),
    "a loss that is a float": (
        lambda: objective(classes(), loss=lambda o, t: F.cross_entropy(o, t).item()),
        "its loss returns float",
    ),
    "a loss without a gradient": (
        lambda: objective(classes(), loss=lambda o, t: F.cross_entropy(o.detach(), t)),
        "its loss has no gradient",
    ),
    "a complex loss": (
        lambda: objective(classes(), loss=lambda o, t: F.cross_entropy(o, t) * 1j),
        r"its loss returns complex64 \[\]",
    ),
    "predictions beside a column of targets": (
        lambda: objective(numbers(), loss=lambda o, t: F.mse_loss(o.squeeze(1), t)),
        "each sample is compared with all targets",
    ),
    "a column of predictions beside targets": (
        lambda: flat_targets(objective(numbers(), loss=lambda o, t: (o - t).abs().mean())),
        "each sample is compared with all targets",
    ),
    "a finish without a number": (lambda: objective(classes(), finish=lambda mean: None), "its finish returns None"),
    "a guess of another shape": (
        lambda: objective(classes(), guess=lambda output: output),
        r"its guess returns float32 \[6, 3\], expected one class per sample",
    ),
    "labels of a softer kind": (
        lambda: replace(classes(), data=replace(classes().data, train=floats(classes().data.train))),
        "its loss fails for outputs float32 .* and targets float32",
    ),
    "a label too many": (
        lambda: replace(classes(), data=replace(classes().data, train=labels(7))),
        "found labels from 7 to 7, expected 0 to 2",
    ),
}


def flat_targets(task: Task) -> Task:
    inputs, target = task.data.train[:]
    return replace(task, data=replace(task.data, train=TensorDataset(inputs, target.flatten())))


def floats(samples: Dataset[Any]) -> TensorDataset:
    inputs, target = samples[:]
    return TensorDataset(inputs, target.float())


def labels(label: int) -> TensorDataset:
    return TensorDataset(torch.ones(20, 4), torch.full((20,), label))


@pytest.mark.parametrize("case", WRONG_TASKS)
def test_a_task_that_breaks_its_contract_is_refused(case: str) -> None:
    make, message = WRONG_TASKS[case]
    task = make()
    with pytest.raises(ConfigError, match=r"^dataset: ") as error:
        check(task, Returns(outputs=task.objective.outputs))
    assert re.search(message, str(error.value)), error.value
    assert all(len(line) < 400 for line in error.value.problems)


WRONG_MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a tuple": (lambda: Returns(lambda output: (output, output)), r"Returns returns a tuple of \(float32 \[6, 3\]"),
    "a dict": (lambda: Returns(lambda output: {"logits": output}), "Returns returns a dict of logits"),
    "a dataclass": (lambda: Returns(Named), "Returns returns Named with logits"),
    "nothing": (lambda: Returns(lambda output: None), "Returns returns None"),
    "classes": (lambda: Returns(lambda output: output.argmax(1)), r"int64 \[6\], expected floating-point"),
    "a mean": (lambda: Returns(lambda output: output.mean(0)), r"float32 \[3\] for 6 samples"),
    "three outputs for ten classes": (lambda: Returns(outputs=2), r"\[6, 2\], expected \[6, 3\]: one number for each"),
    "a detached output": (lambda: Returns(torch.Tensor.detach), "found an output without a gradient"),
    "another input": (lambda: Asks(4, 3), "cannot take the dataset's inputs, .*missing 1 required .*'mask'"),
    "a width too many": (lambda: nn.Linear(5, 3), "cannot take the dataset's inputs, float32 .6, 4.: RuntimeError"),
    "a name typed wrong": (Forgetful, r"no attribute 'lineer' .test_preflight.py, line \d+"),
    "frozen": (lambda: Returns().requires_grad_(False), "found all 2 parameters frozen"),
}


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_a_model_that_does_not_fit_is_refused(case: str) -> None:
    make, message = WRONG_MODELS[case]
    with pytest.raises(ConfigError, match=r"^model: ") as error:
        check(classes(), make())
    assert re.search(message, str(error.value)), error.value


def test_batch_norm_is_refused_with_a_micro_batch_of_one() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ConfigError, match=r"^global_batch_size: found micro-batches of 1 sample, and BatchNorm"):
        check(classes(), model, micro_batch=1)
    check(classes(), model, micro_batch=2)


def test_numbers_that_are_none_at_the_start_are_no_run() -> None:
    with pytest.raises(NonFiniteError, match="the model's output of the first micro-batch holds NaN"):
        check(classes(), Returns(lambda output: output / 0))
    check(classes(), Returns(lambda output: output / 0), finite=False)  # fp16 skips such steps


RIGHT: dict[str, tuple[Task, nn.Module]] = {
    "contrastive": (objective(classes(), train_loss=contrastive), Returns()),
    "weighted classes": (objective(classes(), loss=weighted), Returns()),
    "a metric as a column": (objective(numbers(), metric=lambda o, t: (o - t).square()), Returns(outputs=1)),
    "a metric of bools": (objective(classes(), metric=lambda o, t: o.argmax(1) == t), Returns()),
    "a root": (objective(numbers(), finish=lambda mean: mean**0.5), Returns(outputs=1)),
    "partly frozen": (classes(), nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 3))),
    "a test set of one sample more": (classes(513), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_unusual_but_right_passes(case: str) -> None:
    check(*RIGHT[case])


class Restless(nn.Module):
    """A model with everything that a forward pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.layers = nn.Sequential(self.first, nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
        self.passes, self.seen = 0, torch.zeros(4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        self.mean = inputs.mean(0)
        self.late = inputs
        numpy.random.rand()
        with torch.no_grad():
            self.first.weight.clamp_(-0.01, 0.01)
        return self.layers(inputs)  # type: ignore[no-any-return]


def test_nothing_is_changed() -> None:
    task, model = classes(), Restless()
    model.layers[2].eval()
    mean = model.mean
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    numpy.random.seed(1)
    expected = torch.rand(3), numpy.random.rand(3)
    torch.manual_seed(1)
    numpy.random.seed(1)
    check(task, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.passes == 0 and model.mean is mean and not hasattr(model, "late")
    assert model.training and not model.layers[2].training
    assert torch.equal(torch.rand(3), expected[0]) and (numpy.random.rand(3) == expected[1]).all()
    assert all(parameter.grad is None for parameter in model.parameters())


class Lazy(nn.Module):
    """A model that learns the width of its inputs from the first of them."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Dropout(), nn.Linear(8, 10)
        )
        if unused:
            self.unused = nn.LazyLinear(3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)  # type: ignore[no-any-return]


OWN = {"trusted_packages": ["test_preflight"]}


def weights(path: str, model: dict[str, Any]) -> str | dict[str, Tensor]:
    """Return the weights that a run of the model leaves behind, or the text of its refusal."""
    cfg, choices = config("sync=local_sgd", "sync.period=2", "max_steps=4", "device=cpu")
    found = run(cfg | OWN | {"model": model}, choices, path)
    if isinstance(found, str):
        return found
    return dict(load(path, trusted_packages=["test_preflight"]).state_dict())


def both(path: str, model: dict[str, Any]) -> list[Any]:
    """Return the weights with the check and without it."""
    checked = weights(f"{path}/checked", model)
    tried, Session._try = Session._try, lambda self, forward: None  # type: ignore[method-assign]
    try:
        return [checked, weights(f"{path}/unchecked", model)]
    finally:
        Session._try = tried  # type: ignore[method-assign]


def test_a_run_has_the_same_bits_with_the_check_and_lazy_layers_are_made(ranks2: RankPool, tmp_path: Path) -> None:
    with_, without = ranks2.run(both, str(tmp_path), {"name": "test_preflight:Lazy"})[0]
    assert isinstance(with_, dict) and isinstance(without, dict), with_
    assert with_["layers.1.weight"].shape == (8, 64)
    assert all(torch.equal(value, without[name]) for name, value in with_.items())


class Pair(Lazy):
    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs), inputs


def test_a_run_is_refused_on_every_rank(ranks2: RankPool, tmp_path: Path) -> None:
    for text in ranks2.run(weights, str(tmp_path), {"name": "test_preflight:Pair"}):
        assert text.startswith("ConfigError: model: Pair returns a tuple of (float32 [24, 10], float32 [24, 1, 8, 8])")


def test_a_lazy_layer_that_no_pass_reaches_is_refused(ranks2: RankPool, tmp_path: Path) -> None:
    for text in ranks2.run(weights, str(tmp_path), {"name": "test_preflight:Lazy", "unused": True}):
        assert text.startswith("ConfigError: model: found parameters that no forward pass gives a shape: unused.weight")
