"""Data that does not fit: read by workers ahead of its use, and a run on it resumes exactly where it was."""

import gc
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_pool import RankPool
from run_states import same, states, training_state
from runs import config, run
from test_image_folder import BOTH, write_images
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ddp_agent.data import loader
from ddp_agent.data.loader import stream

WORKERS = 2


class Watched(Dataset[tuple[Tensor, int]]):
    """Samples say which worker read them; `read` counts them, in memory that all processes share."""

    def __init__(self) -> None:
        self.read = torch.zeros(64, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.read)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read[index] += 1
        worker = get_worker_info()
        return torch.tensor([-1 if worker is None else worker.id]), index


def test_workers_read_ahead_of_what_is_asked_for() -> None:
    """Two batches a worker lie ready while the rank computes; without workers only what is asked for is read."""
    batches = [[4 * batch + i for i in range(4)] for batch in range(16)]
    found, alone = Watched(), Watched()
    ahead = stream(found, batches, device=torch.device("cpu"), workers=WORKERS)
    next(ahead)
    deadline = time.monotonic() + 30
    while (read := int(found.read.sum())) < 4 * 2 * WORKERS and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 4 * 2 * WORKERS <= read < len(found)
    rest = list(ahead)
    assert [int(target[0]) for _, target in rest] == list(range(4, 64, 4))  # in their order
    assert {int(worker) for inputs, _ in rest for worker in inputs.flatten()} == set(range(WORKERS))
    assert torch.equal(found.read, torch.ones(64, dtype=torch.int64))
    next(stream(alone, batches, device=torch.device("cpu"), workers=0))
    assert int(alone.read.sum()) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork is not safe")
def test_workers_are_children_of_the_rank(ranks1: RankPool) -> None:
    """Also in a process whose own start method is another one, as here and from Python 3.14 on."""
    ((default, (rank, *parents)),) = ranks1.run(parents_of_workers)
    assert default == "forkserver"
    assert set(parents) == {rank}


class Mortal:
    """Object in a reference cycle, which records the process in which garbage collection ends it."""

    def __init__(self, ends: Tensor) -> None:
        self.circle, self.ends = self, ends

    def __del__(self) -> None:
        self.ends[int(os.getpid() != int(self.ends[2]))] += 1


class Collecting(Watched):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        gc.collect()
        return super().__getitem__(index)


def test_workers_do_not_end_what_is_garbage_of_the_rank() -> None:
    ends = torch.tensor([0, 0, os.getpid()]).share_memory_()  # here, elsewhere, where here is
    gc.collect()
    Mortal(ends)
    list(stream(Collecting(), [[0, 1], [2, 3]], device=torch.device("cpu"), workers=WORKERS))
    assert int(ends[1]) == 0
    gc.collect()
    assert int(ends[0]) == 1


class Parents(Watched):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([os.getppid()]), index


def parents_of_workers() -> tuple[str | None, list[int]]:
    loaded = stream(Parents(), [[0, 1], [2, 3]], device=torch.device("cpu"), workers=WORKERS)
    return multiprocessing.get_start_method(), [os.getpid(), *(int(i) for inputs, _ in loaded for i in inputs)]


@pytest.mark.parametrize(("kind", "pinned"), [("cpu", False), ("cuda", True)])
def test_memory_is_pinned_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch, kind: str, pinned: bool) -> None:
    asked: dict[str, Any] = {}

    def fake(dataset: Any, **options: Any) -> list[Any]:
        asked.update(options)
        return []

    monkeypatch.setattr(loader, "DataLoader", fake)
    assert list(stream(Watched(), [], device=torch.device(kind), workers=WORKERS)) == []
    assert (asked["pin_memory"], asked["num_workers"]) == (pinned, WORKERS)


def run_and_count_workers(*arguments: Any) -> int:
    gc.disable()  # it would end them too, at a moment of its own
    try:
        assert isinstance(run(*arguments), dict)
        return len(multiprocessing.active_children())
    finally:
        gc.enable()


def test_a_finished_run_leaves_no_workers(ranks2: RankPool, tmp_path: Path) -> None:
    files = write_images(tmp_path / "files", BOTH)
    read = ("dataset=image_folder", f"data_root='{files}'", "dataset.image_size=8", f"dataset.workers={WORKERS}")
    options = (*read, "model=cnn", "model.channels=[4]", "model.hidden=8", "max_steps=6", "global_batch_size=4")
    assert ranks2.run(run_and_count_workers, *config(*options), str(tmp_path / "run")) == [0, 0]


@pytest.mark.parametrize("slicing", [pytest.param("shared", marks=pytest.mark.exhaustive), "iid"])
def test_a_run_on_image_files_resumes_bit_for_bit(ranks2: RankPool, tmp_path: Path, slicing: str) -> None:
    """27 pictures in batches of 4: the checkpoint lies within the second epoch, and random crops go on."""
    files = write_images(tmp_path / "files", BOTH)
    options = (
        *("dataset=image_folder", f"data_root='{files}'", "dataset.image_size=8", f"dataset.workers={WORKERS}"),
        *("model=cnn", "model.channels=[4]", "model.hidden=8", "sync=local_sgd", "sync.period=4", f"slicing={slicing}"),
        *("max_steps=12", "global_batch_size=4", "checkpoint_every=1", "keep_checkpoints=99", "eval_every=5"),
    )
    whole = ranks2.run(run, *config(*options), str(tmp_path / "whole"))[0]
    assert isinstance(whole, dict), whole
    for step in range(8, 13):
        (tmp_path / "whole" / "checkpoints" / f"step-{step:08d}").rename(tmp_path / f"step {step}")
    cfg, choices = config(*options)
    resumed = ranks2.run(run, cfg | {"resume": str(tmp_path / "whole")}, choices, str(tmp_path / "resumed"))[0]
    assert isinstance(resumed, dict), resumed
    last = [torch.load(file, weights_only=True) for file in sorted((tmp_path / "step 12").glob("rank-*.pt"))]
    assert same([training_state(state) for state in states(tmp_path / "resumed", 12)], list(map(training_state, last)))
    assert resumed["order_sha256"] == whole["order_sha256"]
