"""Nobody is timed doing nothing: what the contenders of `bench peers` do, and what is said when they do not."""

import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from configs import files
from rank_pool import RankPool
from test_benchmarks import norm_net, this_rank
from torch import nn

from benchmarks import averaging, cold, contenders, images, modes, peers, pictures, starts
from benchmarks.__main__ import _parser, main
from benchmarks.job import BATCH, PERIOD, Job
from benchmarks.outcome import Machine, Outcome
from benchmarks.paused import Paused
from ddp_agent.data.datasets.fashion_mnist import MEAN, STD
from ddp_agent.data.readers.images import normalise
from ddp_agent.distributed.process_group_comm import world_comm

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
INSTALLED = [name for name in peers.PEERS if find_spec(name)]
WITH_PEERS = pytest.mark.skipif(len(INSTALLED) < 2, reason=f"pip install -e '.[peers]': there is {INSTALLED or 'none'}")


def job(steps: int = 2 * PERIOD) -> Job:
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return Job(rank=rank, size=size, local_size=size, device=CPU, steps=steps)


@contextmanager
def environment() -> Iterator[None]:
    """What torchrun would have said to this rank."""
    place = {"RANK": job().rank, "LOCAL_RANK": job().rank, "WORLD_SIZE": job().size, "LOCAL_WORLD_SIZE": job().size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # nobody goes there: the group is there
    with mock.patch.dict(os.environ, {name: str(value) for name, value in place.items()} | address):
        yield


# A loop that is somebody else's


def counting(after_step: Callable[[], None], counted: list[int], steps: int = 10**9) -> None:
    for step in range(1, steps + 1):
        counted.append(step)
        after_step()


def test_a_loop_rests_between_its_turns_and_goes_on_where_it_stopped() -> None:
    counted: list[int] = []
    paused = Paused(functools.partial(counting, counted=counted), CPU)
    assert counted == []
    paused(3)
    assert counted == [1, 2, 3]
    paused(2)
    assert counted == [1, 2, 3, 4, 5]
    threads = threading.active_count()
    paused.close()
    assert threading.active_count() == threads - 1
    assert len(counted) == 5


def test_what_a_loop_raises_comes_out_of_its_turn() -> None:
    with pytest.raises(ZeroDivisionError):
        Paused(lambda after_step: print(1 / 0), CPU)(1)
    paused = Paused(functools.partial(counting, counted=[], steps=3), CPU)
    paused(2)
    with pytest.raises(RuntimeError, match="ended by itself"):
        paused(2)


# A step


def step_rows(installed: list[str]) -> list[Any]:
    with environment():
        return list(contenders.measure(job(), this_rank(), 1, installed).rows)


GRADIENTS = ["this tree: trainer, AllReduce", "hand-written loop: DDP, DataLoader"]
PARAMETERS = ["this tree: trainer, LocalSGD", "hand-written loop: torch PostLocalSGD, DataLoader"]


def test_without_peers_the_rest_is_measured(ranks2: RankPool) -> None:
    """It is also checked: every contender has the parameters that plain torch has, or there are no rows."""
    rows, _ = ranks2.run(step_rows, [])
    assert [row["loop"] for row in rows] == GRADIENTS + PARAMETERS
    assert [row["ratio"] for row in rows if "trainer" in row["loop"]] == [1.0, 1.0]
    for row in rows:
        assert row["samples_per_s"] == pytest.approx(2 * BATCH / row["us_a_step"] * 1e6, abs=1)


@WITH_PEERS
def test_peers_train_what_plain_torch_trains(ranks2: RankPool) -> None:
    rows, _ = ranks2.run(step_rows, INSTALLED, timeout_s=300)  # the imports alone take 10 s
    peers_of_gradients, peers_of_parameters = ["accelerate", "Lightning, barebones"], ["accelerate LocalSGD"]
    assert [row["loop"] for row in rows] == GRADIENTS + peers_of_gradients + PARAMETERS + peers_of_parameters
    assert [row["target"] for row in rows] == [None, 1.0, 1.5, 1.5, None, None, None]


def step_with(broken: str) -> str:
    def unwrapped(model: nn.Module, **_: Any) -> nn.Module:
        return model

    with mock.patch(f"benchmarks.{broken}", unwrapped if "Parallel" in broken else mock.DEFAULT):
        try:
            step_rows([])
        except RuntimeError as error:
            return str(error)
    return "timed"


@pytest.mark.parametrize(
    "broken",
    [
        "by_hand.DistributedDataParallel",  # ranks go their own ways
        "by_hand.PeriodicModelAverager",
        "contenders.AllReduce.before_step",
        "contenders.LocalSGD.after_step",
    ],
)
def test_who_trains_otherwise_is_not_timed(ranks2: RankPool, broken: str) -> None:
    assert all("did not train as plain torch does" in answer for answer in ranks2.run(step_with, broken))


def afterwards(changed: str) -> str:
    work = job()
    with ExitStack() as until_closed:
        contender, _ = contenders.gradients_averaged(work, [], until_closed)
        contender.run(2 * work.steps)
        with torch.no_grad():
            for parameter in contender.parameters():
                match changed:
                    case "ranks differ":
                        parameter.add_(1e-6 * work.rank)
                    case "nothing learnt":
                        parameter.zero_()
                    case "not a number":
                        parameter.fill_(torch.nan)
        try:
            contenders.check_learnt(contender, work, world_comm())
        except RuntimeError as error:
            return str(error)
    return "timed"


@pytest.mark.parametrize(
    ("changed", "said"),
    [("", "timed"), ("ranks differ", "ranks differ"), ("nothing learnt", "loss 0.69"), ("not a number", "loss nan")],
)
def test_in_the_end_ranks_agree_and_have_learnt(ranks2: RankPool, changed: str, said: str) -> None:
    assert all(said in answer for answer in ranks2.run(afterwards, changed))


# Averaging


def averaging_rows(installed: list[str]) -> list[Any]:
    with environment():
        return list(averaging.measure(norm_net, "net", this_rank(), 1, installed).rows)


def test_averagers_are_compared_with_ours(ranks2: RankPool) -> None:
    rows, _ = ranks2.run(averaging_rows, INSTALLED)
    assert [row["target"] for row in rows] == [None, 1.5, 2.0][: 2 + ("accelerate" in INSTALLED)]
    assert rows[0]["ratio"] == 1.0 and "this tree" in rows[0]["averaged_by"]
    assert [row["calls"] for row in rows[:2]] == [2, 1]  # ours sends integer buffers, too


def averaging_with_no_gradients() -> str:
    def nothing(model: nn.Module) -> Callable[[], None]:
        step = averaging.torch_averager(model)
        model.zero_grad()
        return step

    with mock.patch("benchmarks.averaging.torch_averager", nothing):
        try:
            averaging_rows([])
        except (RuntimeError, NotImplementedError) as error:
            return str(error)
    return "timed"


def test_torch_averages_only_what_has_a_gradient(ranks2: RankPool) -> None:
    assert "timed" not in ranks2.run(averaging_with_no_gradients)


# A cold start


def cold_start(loop: str, scratch: str) -> dict[str, Any]:
    """In a process that is warm already: only what it reports is of interest."""
    rank, before_s = job().rank, time.monotonic() - 100
    typed = [loop, "--steps", "8", "--device", "cpu", "--since", str(before_s), "--scratch", scratch]
    with environment():
        cold.main(typed)
    found: dict[str, Any] = json.loads((Path(scratch) / f"rank-{rank}.json").read_text())
    return found | {"until_now_s": time.monotonic() - before_s}


def test_a_cold_start_reports_its_first_step_and_its_memory(ranks2: RankPool, tmp_path: Path) -> None:
    """Counted from before the process was there. It has taken all steps, or there is no report."""
    for found in ranks2.run(cold_start, "by_hand", str(tmp_path)):
        assert 100 < found["first_step_s"] < found["until_now_s"]
        assert found["peak_rss_bytes"] > 50e6
        assert found["peak_device_bytes"] is None


@pytest.mark.exhaustive
def test_a_whole_run_is_started_for_real() -> None:
    [found] = starts.start("train_py", job(8))
    assert 0 < found["first_step_s"] < starts.TIMEOUT_S


def test_a_start_that_fails_says_what_it_said(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    program.chmod(0o755)
    with mock.patch.object(sys, "executable", str(program)), pytest.raises(RuntimeError, match="no such luck"):
        starts.start("trainer", job(8))


def rounds_of_starts() -> tuple[list[Any], list[str]]:
    """With starts that claim a time, on the rank that makes them."""
    begun = []

    def claim(loop: str, work: Job) -> list[dict[str, Any]]:
        begun.append(loop)
        seconds = 2.0 if loop == "by_hand" else 1.0
        return [
            {"first_step_s": s, "peak_rss_bytes": 10 * s, "peak_device_bytes": None} for s in (seconds, seconds / 2)
        ]

    with mock.patch.object(starts, "start", claim):
        return list(starts.measure(job(8), this_rank(), 1, ["lightning"]).rows), begun


def test_starts_take_turns_and_the_slowest_rank_counts(ranks2: RankPool) -> None:
    (rows, begun), (_, others) = ranks2.run(rounds_of_starts)
    loops = ["train_py", "trainer", "by_hand", "lightning"]  # accelerate is not installed, as this goes
    assert [row["started"] for row in rows] == [starts.NAMES[loop] for loop in loops]
    assert begun == loops[::-1] + loops and others == []
    assert [row["first_step_s"] for row in rows] == [1.0, 1.0, 2.0, 1.0]
    assert [row["ratio"] for row in rows] == [1.0, 1.0, 2.0, 1.0]
    assert [row["peak_rss_bytes"] for row in rows] == [10, 10, 20, 10]


# What a GPU adds, on a CPU


def small_pictures() -> pictures.Pictures:
    pixels, targets = torch.randint(256, (48, 28, 28), dtype=torch.uint8), torch.randint(10, (48,))
    return replace(
        pictures.fashion_cnn(None),
        inputs=normalise(pixels, MEAN, STD).unsqueeze(1),
        pixels=pixels,
        targets=targets,
        batch=4,
        steps=3,
        compiled=False,
    )


def picture_rows(broken: str) -> list[Any] | str:
    with mock.patch(f"benchmarks.images.{broken}") if broken else nullcontext():
        try:
            return images.compare(small_pictures(), this_rank(), 1, workers=0)
        except RuntimeError as error:
            return str(error)


def test_images_are_trained_by_all_loops_alike(ranks2: RankPool) -> None:
    for rows in ranks2.run(picture_rows, ""):
        assert [row["target"] for row in rows] == [None, 0.98, 10.0]
        assert all(row["images_per_s"] > 0 for row in rows)


def test_decoded_images_are_those_that_are_resident() -> None:
    small = small_pictures()
    assert small.pixels is not None
    image, label = pictures.Decoded(small.pixels, small.targets)[5]
    torch.testing.assert_close(image, small.inputs[5])
    assert label == small.targets[5]


def test_a_loop_that_does_not_train_images_is_not_timed(ranks2: RankPool) -> None:
    assert all("did not train" in answer for answer in ranks2.run(picture_rows, "Loop.__call__"))


@pytest.mark.exhaustive
def test_every_mode_has_its_cost(ranks2: RankPool) -> None:
    rows, _ = ranks2.run(mode_rows)
    assert sorted(row["sync"] for row in rows) == sorted(files("sync"))
    assert rows[0]["sync"] == "independent" and rows[0]["ratio"] == 1.0


def mode_rows() -> list[Any]:
    with mock.patch.object(modes, "BATCH", 2):
        return list(modes.here(this_rank(), repeats=1, steps=modes.PERIOD).rows)


def test_two_ranks_on_one_gpu_are_measured_by_a_command_of_their_own() -> None:
    machine = Machine(
        processor="Abacus", cores=3, threads_per_rank=1, load=0.5, torch_version="9.9", backend="gloo", ranks=2
    )
    told = Outcome(title="t", how="h", machine=machine, rows=[{"sync": "gossip", "ratio": 1.5}])

    def run(command: list[str], **_: Any) -> None:
        typed = command[command.index("benchmarks") + 1 :]
        arguments = _parser().parse_args(typed)
        assert (arguments.ranks, arguments.only, arguments.repeats) == (2, ["modes"], 7)
        told.write(arguments.json)

    with mock.patch("subprocess.run", run):
        assert modes._two_on_this_gpu(7) == told


# The command


def test_what_is_missing_is_said() -> None:
    assert "lightning" in peers.missing(["accelerate"]) and "accelerate" not in peers.missing(["accelerate"])
    assert ".[peers]" in peers.missing([])


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        (["--steps", "12"], "a multiple of 8"),
        (["--steps", "-8"], "a multiple of 8"),
        (["--only", "everything"], "averaging"),
        (["--starts", "0"], "an integer >= 1"),
        (["--data-root", "no/such/folder"], "no/such/folder: found no train-images"),
    ],
)
def test_wrong_arguments_are_refused(typed: list[str], right: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["peers", *typed])
    assert stop.value.code == 2
    assert right in capsys.readouterr().err


@pytest.mark.exhaustive
def test_the_command_prints_a_table(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    typed = ["peers", "--only", "averaging", "--steps", "8", "--repeats", "1", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *typed, "--json", str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("not installed" in done.stdout) == (len(INSTALLED) < len(peers.PEERS))
    average = json.loads(file.read_text())
    assert len(average["rows"]) == 2 + ("accelerate" in INSTALLED)
