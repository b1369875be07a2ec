"""Tasks dealt to ranks, in whole runs: digits, and whether they are odd."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import config as plain_config
from configs import parsed, refusal
from rank_pool import RankPool
from run_states import same as same_state
from run_states import states, training_state
from runs import EACH, config, mode, run
from torch import nn

from ddp_agent.checkpoint import export
from ddp_agent.config.problems import RunFacts
from ddp_agent.data.multi_task_labels import Labels, multi_task
from ddp_agent.data.slicing.base import SampleAttributes
from ddp_agent.data.slicing.shared import Shared
from ddp_agent.data.slicing.tasks import Owners, by_cost, partition_problems, round_robin
from ddp_agent.data.task import Task
from ddp_agent.errors import ConfigError
from ddp_agent.models.common import multi_task as models
from ddp_agent.training.evaluate import inference
from ddp_agent.training.model import create_model, head_flops
from ddp_agent.training.settings import check_against_data, parse

PARTED = ("slicing.tasks=partition",)
NAMES = ("digit", "odd")


def odd_digits(task: Task) -> Task:
    digits = [part[:][1] for part in (task.data.train, task.data.test)]
    labels = {
        "digit": Labels(train=digits[0], test=digits[1], names=tuple("0123456789")),
        "odd": Labels(train=digits[0] % 2, test=digits[1] % 2, names=("even", "odd")),
    }
    return multi_task(task, labels, "cross_entropy")


def go(pool: RankPool, path: Path, name: str, *overrides: str) -> list[Any]:
    return pool.run(run, *mode(name, *overrides), str(path), 0, odd_digits)


# Who trains what.


def dealt(costs: dict[str, int], ranks: int) -> list[Owners]:
    return [round_robin(list(costs), ranks), by_cost(costs, ranks)]


def test_every_task_has_a_rank_and_every_rank_a_task() -> None:
    generator = torch.Generator().manual_seed(0)
    for tasks in range(1, 7):
        costs = {str(task): int(torch.randint(0, 100, (), generator=generator)) for task in range(tasks)}
        for ranks in range(1, 9):
            for owners in dealt(costs, ranks):
                assert list(owners) == list(costs) and all(owners.values())
                assert sorted({rank for each in owners.values() for rank in each}) == list(range(ranks))
                assert sum(map(len, owners.values())) == max(tasks, ranks)  # nobody does more than must be
                assert all(list(each) == sorted(each) for each in owners.values())


def test_in_turn() -> None:
    assert round_robin(["a", "b", "c"], 2) == {"a": (0,), "b": (1,), "c": (0,)}
    assert round_robin(["a", "b"], 5) == {"a": (0, 2, 4), "b": (1, 3)}


def test_by_cost_no_rank_has_more_than_it_must() -> None:
    assert by_cost({"a": 1, "b": 5, "c": 4, "d": 2}, 2) == {"a": (0,), "b": (0,), "c": (1,), "d": (1,)}
    assert by_cost({"a": 10, "b": 30}, 4) == {"a": (1,), "b": (0, 2, 3)}


def test_what_cannot_be_dealt_is_said() -> None:
    def said(tasks: list[str], deal: Any, ranks: int = 2) -> list[str]:
        return [str(problem) for problem in partition_problems(deal, tasks, ranks)]

    assert said(["a", "b"], (("a",), ("b", "a"))) == []
    assert said(["a", "b"], "by_cost", 9) == []
    assert said(["a"], "round_robin")[0].startswith("slicing.tasks: found partition, but these data have one task")
    assert said([], "round_robin") != []
    assert said(["a", "b"], (("a",),)) == [
        "slicing.deal: found 1 lists of tasks for 2 ranks, expected one for each rank",
        "slicing.deal: found no rank that trains b, expected at least one for each task",
    ]
    assert said(["a", "b"], (("a", "b"), ())) == [
        "slicing.deal: found no task for rank 1, expected at least one: it would train nothing"
    ]
    assert said(["a", "b"], (("a",), ("b", "x"))) == ["slicing.deal: found x for rank 1, expected some of a, b"]
    assert Shared().problems(RunFacts(world_size=2, samples=SampleAttributes(count=4), subtasks=("a",))) == []
    listed = Shared(tasks="partition", deal=(("a",), ("b", "a")))
    assert listed.assign_tasks({"a": 1, "b": 1}, 2) == {"a": (0, 1), "b": (1,)}
    assert Shared().assign_tasks({"a": 1, "b": 1}, 2) == {"a": (0, 1), "b": (0, 1)}


def test_the_key_and_what_it_may_hold() -> None:
    assert refusal("slicing.tasks=split") == ["slicing.tasks: found 'split', expected one of replicate, partition"]
    assert refusal("slicing.deal=fair")[0].startswith(
        "slicing.deal: found 'fair', expected one of round_robin, by_cost"
    )
    settings = parsed(plain_config(*PARTED))
    task = settings.dataset.load()
    with pytest.raises(ConfigError, match=r"slicing.tasks: found partition, but these data have one task"):
        check_against_data(settings, task, 2)


@pytest.mark.parametrize("sync", ["allreduce", "post_local_sgd", "compressed", "local_sgd"])
def test_fp16_where_ranks_must_step_together(sync: str) -> None:
    if sync == "local_sgd":
        parsed(plain_config(*PARTED, "precision=fp16", sync=sync))
    else:
        (found,) = refusal(*PARTED, "precision=fp16", sync=sync)
        assert found.startswith("precision: found fp16 with slicing.tasks=partition") and "precision=bf16" in found
    parsed(plain_config("precision=fp16", sync=sync))


# What the tasks of a run are.


def loaded() -> tuple[Any, Task]:
    cfg, choices = config()
    settings = parse(cfg, choices=choices, world_size=1)
    return settings, odd_digits(settings.dataset.load())


def test_a_task_of_several() -> None:
    settings, task = loaded()
    assert task.objective.outputs == 12 and [each.name for each in task.subtasks] == list(NAMES)
    model = create_model(settings, task)
    inputs, target = task.data.test[:]
    with inference(model):
        output = model(inputs)
    digit, odd = output.split([10, 2], 1)
    cross_entropy = nn.functional.cross_entropy
    expected = (cross_entropy(digit, target[:, 0]) + cross_entropy(odd, target[:, 1])) / 2
    torch.testing.assert_close(task.objective.loss(output, target), expected)
    right = [(part.argmax(1) == target[:, column]).float() for column, part in enumerate((digit, odd))]
    assert list(task.objective.more_metrics) == ["digit_accuracy", "odd_accuracy"]
    for metric, each in zip(task.objective.more_metrics.values(), right, strict=True):
        assert torch.equal(metric(output, target), each)
    assert torch.equal(task.objective.metric(output, target), (right[0] + right[1]) / 2)
    assert torch.equal(target[:, 1], target[:, 0] % 2)
    assert task.data.sha256 != settings.dataset.load().data.sha256
    assert task.data.labels is not None and torch.equal(task.data.labels, task.data.train[:][1][:, 0])


def test_a_trunk_is_a_model_without_its_last_layer() -> None:
    settings, task = loaded()
    model = create_model(settings, task)
    assert isinstance(model, models.MultiTask)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    heads = {name: shape for name, shape in shapes.items() if name.startswith("heads.")}
    width = heads["heads.digit.weight"][1]
    assert heads == {
        "heads.digit.weight": (10, width),
        "heads.digit.bias": (10,),
        "heads.odd.weight": (2, width),
        "heads.odd.bias": (2,),
    }
    assert not [name for name in shapes if not name.startswith(("heads.", "trunk."))]
    assert head_flops(model, task) == {"digit": 2 * width * 10, "odd": 2 * width * 2}


def test_training_calls_the_heads_that_are_trained() -> None:
    settings, task = loaded()
    model = create_model(settings, task)
    assert isinstance(model, models.MultiTask)
    inputs = task.data.train[:4][0]
    model.trained = {"odd": 3.0}
    whole = model.train()(inputs)
    assert whole.shape == (4, 2) and model.eval()(inputs).shape == (4, 12)
    amplified = torch.autograd.grad(model.train()(inputs).sum(), list(model.trunk.parameters()))
    model.trained = {"odd": 1.0}
    plain = torch.autograd.grad(model(inputs).sum(), list(model.trunk.parameters()))
    for one, other in zip(amplified, plain, strict=True):
        torch.testing.assert_close(one, 3 * other)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 12), "Linear does not end in a linear layer"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(4, 12)),
            "Sequential has one layer only, and its tasks would share nothing",
        ),
        (nn.Sequential(nn.Linear(4, 12), nn.Linear(12, 7)), "does not end in a linear layer"),
        (nn.Sequential(nn.Linear(4, 7)), "does not end in a linear layer that 2 tasks could each have of their own"),
    ],
)
def test_models_without_a_trunk_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.with_heads(model, {"digit": 10, "odd": 2})


# Whole runs.


@pytest.mark.parametrize("name", EACH)
def test_a_run_with_a_task_for_each_rank(ranks2: RankPool, tmp_path: Path, name: str) -> None:
    """The exported model is the evaluated one, and a resumed run ends in the same bits."""
    options = (
        *PARTED,
        "checkpoint_every=3",
        "keep_checkpoints=9",
        "clip_norm=0.05",
        "ema_decay=0.5",
        "consensus_every=2",
    )
    summary, other = go(ranks2, tmp_path / "whole", name, *options)
    assert isinstance(summary, dict), summary
    assert summary["task_owners"] == {"digit": [0], "odd": [1]}
    assert summary["task_metrics"] == other["task_metrics"] and summary["test_metric"] == other["test_metric"]
    assert summary["test_metric"] == pytest.approx(sum(summary["task_metrics"].values()) / 2)
    model, task = export.load(tmp_path / "whole"), loaded()[1]
    inputs, target = task.data.test[:]
    with torch.no_grad():
        output = model(inputs)
    for part, metric in task.objective.more_metrics.items():
        found = metric(output, target).double().mean().item()
        assert found == pytest.approx(summary["task_metrics"][part.removesuffix("_accuracy")])
    go(ranks2, tmp_path / "short", name, *options, "max_steps=3")
    resumed, _ = go(ranks2, tmp_path / "later", name, *options, f"resume={tmp_path / 'short'}")
    assert isinstance(resumed, dict), resumed
    for one, two in zip(states(tmp_path / "whole", 8), states(tmp_path / "later", 8), strict=True):
        assert same_state(training_state(one), training_state(two))
    assert resumed["payload_bytes"] == summary["payload_bytes"] and resumed["syncs"] == summary["syncs"]


def test_replicated_tasks_are_plain_training_on_both(ranks2: RankPool, tmp_path: Path) -> None:
    """On one rank a partition is the same thing, bit for bit; and two ranks are one with both their samples."""
    ranks1 = RankPool(1, ranks2._processes)
    options = ("optimizer.lr=0.1",)
    whole = go(ranks1, tmp_path / "whole", "allreduce", *options)[0]
    alone = go(ranks1, tmp_path / "alone", "allreduce", *options, *PARTED)[0]
    both = go(ranks2, tmp_path / "both", "allreduce", *options)[0]
    parted = go(ranks2, tmp_path / "parted", "allreduce", *options, *PARTED)[0]
    assert whole["task_owners"] == {"digit": [0], "odd": [0]} and both["task_owners"] == {
        "digit": [0, 1],
        "odd": [0, 1],
    }
    assert whole["test_loss"] == alone["test_loss"]
    assert both["test_loss"] == pytest.approx(whole["test_loss"], rel=1e-5)
    assert parted["test_loss"] != pytest.approx(whole["test_loss"], rel=1e-3)  # control: half the samples a head
    assert len({each["init_sha256"] for each in (whole, alone, both, parted)}) == 1
    assert parted["payload_bytes"] < both["payload_bytes"]


def test_tasks_are_dealt_as_asked(ranks2: RankPool, tmp_path: Path) -> None:
    listed = go(ranks2, tmp_path / "1", "local_sgd", *PARTED, "slicing.deal=[[odd],[digit,odd]]", "slicing=iid")[0]
    assert listed["task_owners"] == {"digit": [1], "odd": [0, 1]} and listed["slicing"] == "iid"
    by_cost = go(ranks2, tmp_path / "2", "local_sgd", *PARTED, "slicing.deal=by_cost", "slicing=dirichlet")[0]
    assert by_cost["task_owners"] == {"digit": [0], "odd": [1]}
    records = [json.loads(line) for line in (tmp_path / "2" / "metrics.jsonl").read_text().splitlines()]
    assert any({"test_digit_accuracy", "test_odd_accuracy", "test_accuracy"} <= record.keys() for record in records)
    assert "tasks" in json.loads((tmp_path / "2" / "model.json").read_text())


def test_data_with_one_task_have_none_of_it(ranks2: RankPool, tmp_path: Path) -> None:
    summary = ranks2.run(run, *mode("allreduce"), str(tmp_path))[0]
    assert summary["task_owners"] is None and summary["task_metrics"] is None


def test_several_tasks_and_one_layer_are_refused() -> None:
    cfg, choices = config("model=linear")
    settings = parse(cfg, choices=choices, world_size=1)
    with pytest.raises(ConfigError, match=r"model: Linear has one layer only"):
        create_model(settings, odd_digits(settings.dataset.load()))
