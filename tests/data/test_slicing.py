"""Slices of the data: a partition, what the shards hold, and refusals."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import settings
from rank_pool import RankPool
from runs import config, run
from scipy.spatial.distance import jensenshannon
from shard_cases import DRAWN, SHARDED, attributes, cases, shards_of, sliced

from ddp_agent.data.sample_order import ShardOrder
from ddp_agent.data.shard_stats import ShardStats
from ddp_agent.data.slicing.base import SampleAttributes, Shards
from ddp_agent.data.slicing.dirichlet import shares
from ddp_agent.data.task import Task
from ddp_agent.errors import ConfigError
from ddp_agent.training.settings import check_against_data

# The partition


@pytest.mark.parametrize("name", SHARDED)
def test_every_sample_is_in_exactly_one_shard(name: str) -> None:
    for samples, ranks, seed in cases(40):
        for drawn in DRAWN:
            for epoch in range(3):
                shards = shards_of(name, samples, ranks, seed, epoch, drawn=drawn)
                assert len(shards) == ranks and all(len(shard) for shard in shards)
                assert sorted(torch.cat(shards).tolist()) == list(range(samples.count))


@pytest.mark.parametrize("name", SHARDED)
def test_shards_are_kept_or_drawn_anew(name: str) -> None:
    samples = attributes(120, classes=9, groups=20)

    def epochs(drawn: str) -> set[str]:
        return {str(shards_of(name, samples, 3, 7, epoch, drawn=drawn)) for epoch in range(6)}

    assert len(epochs("once")) == 1
    assert len(epochs("every_epoch")) > 3


@pytest.mark.parametrize("name", ["iid", "dirichlet", "by_label", "by_group"])
def test_seeds_draw_other_shards(name: str) -> None:
    samples = attributes(120, classes=9, groups=20)
    assert len({str(shards_of(name, samples, 3, seed)) for seed in range(6)}) > 3


@pytest.mark.parametrize("name", ["iid", "contiguous"])
def test_equal_shards(name: str) -> None:
    for samples, ranks, seed in cases(20):
        sizes = [len(shard) for shard in shards_of(name, samples, ranks, seed)]
        assert max(sizes) - min(sizes) <= 1


def test_contiguous_shards_are_neighbours_in_the_order_of_the_ranks() -> None:
    assert torch.cat(shards_of("contiguous", attributes(50), 3, seed=5)).tolist() == list(range(50))


@pytest.mark.parametrize(("name", "key"), [("by_label", "labels"), ("by_group", "groups")])
def test_whole_keys_go_to_one_rank_in_shards_of_about_one_size(name: str, key: str) -> None:
    for samples, ranks, seed in cases(40):
        keys = getattr(samples, key)
        shards = shards_of(name, samples, ranks, seed)
        owned = [set(keys[shard].tolist()) for shard in shards]
        assert sum(map(len, owned)) == len(set.union(*owned))
        sizes = [len(shard) for shard in shards]
        assert max(sizes) - min(sizes) <= keys.bincount().max()


@pytest.mark.parametrize("alpha", [0.001, 0.1, 1.0, 30.0])
def test_dirichlet_shares_have_the_variance_of_the_distribution(alpha: float) -> None:
    ranks, generator = 4, torch.Generator().manual_seed(0)
    drawn = torch.stack([shares(alpha, ranks, generator) for _ in range(4000)])
    assert torch.allclose(drawn.sum(1), torch.ones(4000, dtype=torch.float64))
    expected = (1 / ranks) * (1 - 1 / ranks) / (ranks * alpha + 1)
    assert drawn.var(0).mean().item() == pytest.approx(expected, rel=0.1)
    assert drawn.mean(0).tolist() == pytest.approx([1 / ranks] * ranks, abs=0.03)


def test_a_small_alpha_parts_the_classes_and_a_large_one_mixes_them() -> None:
    samples = SampleAttributes(count=4000, labels=torch.arange(4000) % 10)
    divergences = []
    for alpha in (1000.0, 1.0, 0.2):
        order = sliced("dirichlet", alpha=alpha).order(samples, 3, 0, 4)
        stats = ShardStats.of(order, samples.labels)
        assert stats and stats.divergences
        divergences.append(sum(stats.divergences))
    assert divergences[0] < 0.02 < divergences[1] < divergences[2]


# What the shards hold


def test_the_statistics_count_and_compare() -> None:
    samples = attributes(200)
    order = sliced("dirichlet", alpha=1.0).order(samples, 0, 0, 3)
    stats = ShardStats.of(order, samples.labels)
    assert stats and stats.label_counts is not None and isinstance(order, ShardOrder) and samples.labels is not None
    assert stats.sizes == [len(shard) for shard in order.shards(0)]
    for rank, shard in enumerate(order.shards(0)):
        expected = [int((samples.labels[shard] == label).sum()) for label in range(4)]
        assert stats.label_counts[rank].tolist() == expected
        whole = samples.labels.bincount().double()
        by_scipy = jensenshannon(expected, whole.numpy(), base=2) ** 2
        assert stats.divergences and stats.divergences[rank] == pytest.approx(by_scipy)
    assert ShardStats.of(sliced("shared").order(samples, 0, 0, 3), samples.labels) is None
    without = sliced("iid").order(SampleAttributes(count=10), 0, 0, 3)
    assert ShardStats.of(without, None) == ShardStats([4, 3, 3], None)


def images_of(run_dir: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}


@pytest.mark.parametrize("drawn", DRAWN)
def test_a_run_on_shards_says_so_and_resumes_bit_for_bit(ranks3: RankPool, tmp_path: Path, drawn: str) -> None:
    """The shards are so uneven that ranks pass through theirs different numbers of times."""
    options = ["slicing=dirichlet", "slicing.alpha=0.5", f"slicing.drawn={drawn}", "sync=local_sgd", "sync.period=2"]
    options += ["max_steps=60", "checkpoint_every=23", "seed=4"]
    whole = ranks3.run(run, *config(*options), str(tmp_path / "whole"))[0]
    assert isinstance(whole, dict), whole
    assert whole["slicing"] == "dirichlet"
    assert sum(whole["shard_sizes"]) == 1438 and max(whole["shard_sizes"]) > 1.3 * min(whole["shard_sizes"])
    assert [sum(row) for row in whole["shard_labels"]] == whole["shard_sizes"]
    assert all(0 < divergence < 1 for divergence in whole["shard_divergences"])
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["shard_sizes"] == whole["shard_sizes"]
    assert images_of(tmp_path / "whole")["shards"] == [0]
    (tmp_path / "whole" / "checkpoints" / "step-00000060").rename(tmp_path / "last")  # the newest is that of step 46
    cfg, choices = config(*options)
    resumed = ranks3.run(run, cfg | {"resume": str(tmp_path / "whole")}, choices, str(tmp_path / "resumed"))[0]
    assert isinstance(resumed, dict), resumed
    assert (resumed["test_loss"], resumed["order_sha256"]) == (whole["test_loss"], whole["order_sha256"])
    assert images_of(tmp_path / "resumed")["shards"] == [0]
    refused = ranks3.run(
        run, *config(*options, "slicing.alpha=0.6", f"resume='{tmp_path / 'whole'}'"), str(tmp_path / "other")
    )[0]
    assert isinstance(refused, str) and "slicing.alpha: the checkpoint has 0.5, this run 0.6" in refused


# What cannot be shared


def refusal(task: Task, *typed: str, world_size: int = 2) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        check_against_data(settings(*typed, "global_batch_size=48", world_size=world_size), task, world_size)
    return refused.value.problems


@pytest.fixture(scope="module")
def digits() -> Task:
    task: Task = settings().dataset.load()
    return task


def with_data(task: Task, **changes: Any) -> Task:
    return replace(task, data=replace(task.data, **changes))


def test_a_shard_without_samples(digits: Task) -> None:
    (problem,) = refusal(digits, "slicing=dirichlet", "slicing.alpha=0.01", world_size=24)
    assert problem.startswith("slicing.alpha: found 0.01, which leaves ranks ")
    assert problem.endswith("of 24 without samples; use a larger alpha, fewer ranks or another seed")


def test_a_shard_without_samples_in_a_later_epoch(digits: Task) -> None:
    """Refused before the run begins, and only when the run comes to that epoch."""
    slicing, samples = sliced("dirichlet", alpha=0.05, drawn="every_epoch"), SampleAttributes.of(digits.data)

    def empty(epoch: int) -> bool:
        try:
            slicing.shards(samples, 6, 0, epoch)
        except ValueError:
            return True
        return False

    first = next(epoch for epoch in range(1000) if empty(epoch))
    assert first > 0, "choose another alpha: the first epoch is to be whole"
    typed = ("slicing=dirichlet", "slicing.alpha=0.05", "slicing.drawn=every_epoch")
    steps = first * 1438 // 48
    check_against_data(settings(*typed, f"max_steps={steps}", "global_batch_size=48", world_size=6), digits, 6)
    assert refusal(digits, *typed, f"max_steps={steps + 1}", world_size=6)


def test_more_ranks_than_labels(digits: Task) -> None:
    (problem,) = refusal(digits, "slicing=by_label", world_size=12)
    assert problem == (
        "slicing.name: found ByLabel for 10 classes among 12 ranks, expected a class or more for each: use at most 10 "
        "ranks, or slicing=dirichlet"
    )


def test_more_ranks_than_groups(digits: Task) -> None:
    groups = torch.arange(1438) % 3
    (problem,) = refusal(with_data(digits, groups=groups), "slicing=by_group", world_size=4)
    assert problem.endswith("for 3 groups among 4 ranks, expected a group or more for each: use at most 3 ranks")


@pytest.mark.parametrize("name", ["by_label", "dirichlet", "by_group"])
def test_data_without_what_it_is_to_be_sliced_by(digits: Task, name: str) -> None:
    (problem,) = refusal(with_data(digits, labels=None, groups=None), f"slicing={name}")
    assert "but this data" in problem and "use iid" in problem


@pytest.mark.parametrize("alpha", ["0", "-1", "no"])
def test_an_alpha_that_is_none(alpha: str) -> None:
    with pytest.raises(ConfigError, match=r"slicing\.alpha: found"):
        settings("slicing=dirichlet", f"slicing.alpha={alpha}")


def test_every_sharding_is_one() -> None:
    assert all(isinstance(sliced(name), Shards) for name in SHARDED)
    assert math.isclose(sliced("dirichlet").alpha, 0.1)
