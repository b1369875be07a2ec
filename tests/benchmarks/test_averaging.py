"""Benchmark `sync`: every contender averages, and sends the bytes that the table says."""

from argparse import Namespace
from typing import Any
from unittest import mock

import pytest
import torch
from configs import files
from rank_pool import RankPool
from this_rank import this_rank
from torch import nn

from benchmarks import configured, sync, yardsticks
from ddp_agent.distributed.process_group_comm import world_comm


def norm_net() -> nn.Module:
    """Six parameters tensors of 39 numbers, four floating-point buffers of 10 numbers, two integer ones."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)
    )


def averaging_rows(models: tuple[str, ...]) -> list[Any]:
    return list(sync.compare(dict.fromkeys(models, norm_net), 2, this_rank()).rows)


def test_sync_prints_every_contender_for_every_model_with_its_bytes(ranks2: RankPool) -> None:
    """On two ranks an all-reduce and an all-gather send their whole payload, an all-to-all half of it."""
    numbers, tensors, buffers, integers = 2 * 9 + 2 + 2 + 9 + 3 + 3, 6, 2 + 2 + 3 + 3, 2
    int8, sign = 4 + 256, 4 + 1024 // 8  # one block for each rank, of which one is padding
    # PowerSGD would gain nothing: 2 (2 + 9) numbers for a matrix of 2 x 9, 2 (3 + 3) for one of 3 x 3.
    sent = {
        "raw all_reduce of one flat tensor": (4 * numbers, 4 * numbers, 1),
        sync.OURS: (4 * (numbers + buffers) + 8 * integers, 4 * (numbers + buffers) + 8 * integers, 2),
        "torch average_parameters": (4 * numbers, 4 * numbers, 1),
        "all_reduce of each tensor": (4 * numbers, 4 * numbers, tensors),
        "reducer=dense": (4 * numbers, 4 * numbers, 1),
        "reducer=bf16": (2 * numbers, 2 * numbers, 1),
        "reducer=fp16": (2 * numbers, 2 * numbers, 1),
        "reducer=int8": (3 * int8, 2 * int8, 2),
        "reducer=sign": (3 * sign, 2 * sign, 2),
        "reducer=sparse": (4 * numbers + numbers // 16, 4 * numbers + numbers // 16, 2),
        "reducer=topk": (4 + 4, 4 + 4, 1),
        "reducer=powersgd": (4 * numbers, 4 * numbers, 1),
    }
    rows, _ = ranks2.run(averaging_rows, ("one", "two"))
    names = [*list(sent)[:4], *(f"reducer={name}" for name in files("reducer"))]
    assert [(row["model"], row["averaged_by"]) for row in rows] == [(m, name) for m in ("one", "two") for name in names]
    counted = [(row["averaged_by"], (row["payload_bytes"], row["wire_bytes"], row["calls"])) for row in rows]
    assert [(name, bytes_) for name, bytes_ in counted if name in sent] == [
        (n, sent[n]) for n in names if n in sent
    ] * 2
    assert all(row["wire_ratio"] == row["wire_bytes"] / (4 * numbers) for row in rows)
    assert all(row["ms"] >= row["best_ms"] > 0 for row in rows)
    assert [row["ratio"] for row in rows if "raw" in row["averaged_by"]] == [1.0, 1.0]
    checked = [row["averaged_by"] for row in rows if row["check_us"] is not None]
    assert checked == [sync.OURS] * 2
    assert all(
        row["check_ratio"] == pytest.approx(row["check_us"] / row["ms"] / 1e3) for row in rows if row["check_us"]
    )
    assert [row["target"] for row in rows] == [sync.TARGET if row["averaged_by"] == sync.OURS else None for row in rows]


def counted_twice() -> list[tuple[Any, ...]]:
    """Return c10d's counts and Comm's counts, in turn."""
    found: list[tuple[Any, ...]] = []
    for reducer in configured.reducers().values():
        comm, counter = world_comm(), yardsticks.CollectiveCounter()
        with counter:
            reducer.mean_(torch.randn(40, 50), comm)
        stats = comm.stats
        found.append((counter.calls, counter.payload_bytes, counter.wire_bytes))
        found.append((stats.calls, stats.payload_bytes, pytest.approx(stats.wire_bytes, abs=stats.calls)))
    return found


def test_the_counters_agree(ranks3: RankPool) -> None:
    for found in ranks3.run(counted_twice):
        assert found[::2] == found[1::2]


def torchvision_rows() -> list[Any]:
    return list(sync.measure(Namespace(models=["squeezenet1_1"], repeats=1), this_rank()).rows)


def test_sync_takes_torchvision_models_by_name(ranks2: RankPool) -> None:
    rows, _ = ranks2.run(torchvision_rows)
    raw = 4 * 1_235_496
    payloads = {row["averaged_by"]: row["payload_bytes"] for row in rows}
    assert {row["model"] for row in rows} == {"squeezenet1_1"}
    assert {payloads[name] for name in payloads if not name.startswith("reducer")} == {raw}
    shares = {row["averaged_by"]: row["wire_ratio"] for row in rows}
    assert shares["reducer=int8"] <= 0.27 and shares["reducer=topk"] <= 0.025 and shares["reducer=dense"] == 1


def average_with(broken: str) -> str:
    with mock.patch(broken, return_value=None):
        try:
            averaging_rows(("one",))
        except RuntimeError as error:
            return str(error)
    return "timed"


@pytest.mark.parametrize(
    "broken",
    [
        *(f"benchmarks.yardsticks.{name}_" for name in ("flat_sum", "torch_mean", "tensorwise_mean")),
        "ddp_agent.sync.LocalSGD.after_step",
        "ddp_agent.reducers.base.Reducer.mean_",
    ],
)
def test_what_does_not_average_is_not_timed(ranks2: RankPool, broken: str) -> None:
    assert all("did not leave the mean" in answer for answer in ranks2.run(average_with, broken))
