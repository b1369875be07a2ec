import functools
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from configs import config, files, node
from rank_pool import RankPool
from torch import nn

from benchmarks import bare, checkpoint, diagnostics, overlap, step, sync, yardsticks
from benchmarks.__main__ import main
from benchmarks.outcome import Machine, Outcome, Row
from benchmarks.rounds import Timing, take_turns
from ddp_agent.checkpoint.writer import Writer
from ddp_agent.config.registry import build
from ddp_agent.data.datasets.article import Article
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.topology import Topology
from ddp_agent.sync import AllReduce, DiLoCo, Independent, LocalSGD, StreamingDiLoCo

MLP_PARAMETERS = 10 * 32 + 32 + 32 * 2 + 2
ROOT = Path(__file__).parents[2]


def this_rank() -> Runtime:
    rank, size = dist.get_rank(), dist.get_world_size()
    return Runtime(
        rank=rank,
        local_rank=rank,
        world_size=size,
        local_world_size=size,
        node_rank=0,
        attempt=0,
        device=torch.device("cpu"),
        backend="gloo",
    )


# Overlap


def rounds_of_overlap() -> tuple[list[int], bool]:
    """How often each mode synchronised in two rounds of a period, and whether any fragment is left under way."""
    streaming = StreamingDiLoCo(period=4, fragments=2, delay=1)
    modes = [Independent(), streaming, DiLoCo(period=4), AllReduce()]
    for mode in modes:
        run = overlap.loop(mode, 2, this_rank())
        run(4)
        run(4)
    return [mode.syncs for mode in modes], any(stream.under_way for stream in streaming._streams)


def test_a_round_of_overlap_is_a_whole_period(ranks2: RankPool) -> None:
    """Else a round would pay for what another one began."""
    assert ranks2.run(rounds_of_overlap) == [([0, 4, 2, 8], False)] * 2


def test_overlap_measures_every_mode_against_independence(ranks2: RankPool) -> None:
    arguments = Namespace(period=4, delay=1, batch=2, repeats=1)
    for outcome in ranks2.run(measure_overlap, arguments):
        assert [row["sync"] for row in outcome.rows] == ["independent", "streaming_diloco", "diloco", "allreduce"]
        assert outcome.rows[0]["ratio"] == 1.0
        assert all(row["throughput_percent"] == pytest.approx(100 / row["ratio"]) for row in outcome.rows)


def measure_overlap(arguments: Namespace) -> Outcome:
    return overlap.measure(arguments, this_rank())


# Taking turns


def turns_of(seconds: dict[str, list[list[float]]]) -> dict[str, Timing]:
    """With contenders that claim to have taken `seconds[name][rank]`, the first number in the warm-up."""
    claimed = {name: iter(ranks[dist.get_rank()]) for name, ranks in seconds.items()}
    rounds = min(len(ranks[0]) for ranks in seconds.values()) - 1
    return take_turns({name: claim.__next__ for name, claim in claimed.items()}, rounds, world_comm())


def test_the_slowest_rank_counts_and_the_warm_up_does_not(ranks2: RankPool) -> None:
    seconds = {"yardstick": [[90.0, 1.0, 2.0, 4.0], [90.0, 2.0, 1.0, 1.0]], "other": [[0.1, 3.0, 3.0, 3.0]] * 2}
    for timings in ranks2.run(turns_of, seconds):
        assert timings["yardstick"] == Timing(2.0, 2.0, ratio=1.0, ratio_q1=1.0, ratio_q3=1.0)
        assert timings["other"] == Timing(3.0, 3.0, ratio=1.5, ratio_q1=1.125, ratio_q3=1.5)


def test_a_burst_that_slows_a_whole_round_leaves_the_ratio_alone(ranks1: RankPool) -> None:
    burst = [1.0, 1.0, 50.0, 70.0, 1.0, 60.0]
    seconds = {"yardstick": [burst], "other": [[1.1 * s for s in burst]]}
    [timings] = ranks1.run(turns_of, seconds)
    other = timings["other"]
    assert (other.ratio_q1, other.ratio, other.ratio_q3) == pytest.approx((1.1, 1.1, 1.1))


def order_of_turns() -> str:
    called: list[str] = []

    def call(name: str) -> float:
        called.append(name)
        return 1.0

    take_turns({name: functools.partial(call, name) for name in "abc"}, 2, LocalComm())
    return "".join(called)


def test_no_contender_always_comes_first() -> None:
    assert order_of_turns() == "cba" + "abc" + "cba"


# Averaging


def norm_net() -> nn.Module:
    """Six parameters tensors of 39 numbers, four floating-point buffers of 10 numbers, two integer ones."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)
    )


def averaging_rows(models: tuple[str, ...]) -> list[Any]:
    return list(sync.compare(dict.fromkeys(models, norm_net), 2, this_rank()).rows)


def test_sync_prints_every_contender_for_every_model_with_its_bytes(ranks2: RankPool) -> None:
    """Of two ranks: an all-reduce sends its payload over the wire, an all-to-all half of it, an all-gather all."""
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
    assert [(row["model"], row["averaged_by"]) for row in rows] == [(m, name) for m in ("one", "two") for name in sent]
    assert [(row["payload_bytes"], row["wire_bytes"], row["calls"]) for row in rows] == [*sent.values()] * 2
    assert all(row["wire_ratio"] == row["wire_bytes"] / (4 * numbers) for row in rows)
    assert all(row["ms"] >= row["best_ms"] > 0 for row in rows)
    assert [row["ratio"] for row in rows if "raw" in row["averaged_by"]] == [1.0, 1.0]
    assert [row["target"] for row in rows] == [sync.TARGET if row["averaged_by"] == sync.OURS else None for row in rows]


def test_the_reducers_measured_are_those_of_the_configuration() -> None:
    assert sync.reducers() == {name: build("reducer", node("reducer", name)) for name in files("reducer")}


def counted_twice() -> list[tuple[Any, ...]]:
    """What c10d saw, and what Comm counted."""
    found = []
    for reducer in sync.reducers().values():
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


# A step


def step_rows(steps: int) -> list[Any]:
    return list(step.measure(Namespace(steps=steps, repeats=1), this_rank()).rows)


def test_step_prints_every_loop_in_every_setting(ranks2: RankPool) -> None:
    rows, others = ranks2.run(step_rows, 8)
    loops = ["bare hand-written loop", "trainer", "trainer, recording"]
    settings = ["no communication, 1 rank", "gradients, every step", "parameters, every 8 steps"]
    assert [(row["synchronised"], row["loop"]) for row in rows] == [(s, loop) for s in settings for loop in loops]
    assert all(row["us_a_step"] > 0 and row["ratio"] > 0 for row in rows)
    assert [row["synchronised"] for row in others] == [s for s in settings[1:] for _ in loops]


def diagnostics_rows() -> list[Any]:
    return list(diagnostics.measure(Namespace(steps=16, repeats=1), this_rank()).rows)


def test_looks_are_measured_where_there_is_somebody_to_look_at(ranks2: RankPool) -> None:
    rows = ranks2.run(diagnostics_rows)[0]
    assert [row["synchronised"] for row in rows] == [setting.name for setting in step.SETTINGS if not setting.alone]
    for row in rows:
        assert row["us_a_step"] > 0
        assert row["share_ratio"] == pytest.approx(row["us_a_look"] / row["us_a_step"] / diagnostics.INTERVAL)


def looks(every: int) -> int:
    trainer = stage().trainer(LocalSGD(period=8), consensus_every=every)
    step.fit(trainer, 33)
    return len(trainer.diagnostics.latest)


def test_only_one_of_the_two_looks(ranks2: RankPool) -> None:
    assert ranks2.run(looks, diagnostics.LOOK_EVERY)[0] >= 5
    assert ranks2.run(looks, step.NEVER) == [0, 0]
    assert config()["consensus_every"] == diagnostics.INTERVAL


def checkpoints_of_two_rounds(folder: Path) -> tuple[list[Any], dict[bool, int]]:
    """The rows, and how many saves were begun, of those beside training and of the others."""
    begun, save = {False: 0, True: 0}, Writer.save

    def counted(writer: Writer, *args: Any) -> None:
        begun[writer.beside_training] += 1
        save(writer, *args)

    with mock.patch.object(checkpoint, "EVERY", 2), mock.patch.object(Writer, "save", counted):
        outcome = checkpoint.measure(Namespace(steps=4, repeats=1, directory=folder), this_rank())
    return list(outcome.rows), begun


def test_checkpoints_are_measured_against_none_and_none_is_left(ranks2: RankPool, tmp_path: Path) -> None:
    """Two in each round of 4 steps, of which there are two: the first warms up."""
    for rows, begun in ranks2.run(checkpoints_of_two_rounds, tmp_path):
        assert [row["checkpoints"] for row in rows] == ["none", "before training goes on", "beside training"]
        assert begun == {False: 4, True: 4}
        assert rows[0]["ratio"] == 1.0
        assert rows[2]["target"] == pytest.approx(1 / 0.97)
    assert list(tmp_path.iterdir()) == []


def stage() -> step.Stage:
    task = Article(samples=100, test_samples=10, features=10, separation=2.3, loss="cross_entropy").load()
    return step.Stage(task, Topology.create(), torch.device("cpu"))


def traffic_of_16_steps(number: int) -> tuple[int, int, int, int]:
    """Optimizer steps and payload of the loop by hand, then of the trainer."""
    setting = step.SETTINGS[number]
    by_hand = setting.by_hand(stage().share())
    taken = []
    by_hand.optimizer.register_step_post_hook(lambda *_: taken.append(1))
    counter = yardsticks.CollectiveCounter()
    with counter:
        by_hand(16)
    trainer = stage().trainer(setting.sync())
    step.fit(trainer, 16)
    return len(taken), counter.payload_bytes, trainer.step, trainer.topology.world.stats.payload_bytes


def test_both_loops_do_the_same_work(ranks2: RankPool) -> None:
    size = 4 * MLP_PARAMETERS
    assert ranks2.run(traffic_of_16_steps, 0) == [(16, 0, 16, 0)] * 2
    assert ranks2.run(traffic_of_16_steps, 2) == [(16, 2 * size, 16, 2 * size)] * 2
    for steps_by_hand, sent_by_hand, steps, sent in ranks2.run(traffic_of_16_steps, 1):
        assert (steps_by_hand, steps, sent) == (16, 16, 16 * size)
        assert 16 * size <= sent_by_hand < 16 * size + 100  # once DDP also tells ranks the order of its buckets


def weights_by_hand(number: int, steps: int) -> torch.Tensor:
    loop = step.SETTINGS[number].by_hand(stage().share())
    loop(steps)
    return nn.utils.parameters_to_vector(loop.model.parameters()).detach()


@pytest.mark.parametrize(("number", "steps", "same"), [(0, 8, False), (1, 7, True), (2, 8, True), (2, 7, False)])
def test_the_loops_by_hand_synchronise(ranks2: RankPool, number: int, steps: int, same: bool) -> None:
    one, other = ranks2.run(weights_by_hand, number, steps)
    assert torch.equal(one, other) == same


def accuracy_by_hand() -> float:
    data = stage().share()
    loop = bare.independent(data)
    loop(60)
    return float((loop.model(data.inputs).argmax(1) == data.targets).float().mean())


def test_the_loop_by_hand_learns(ranks1: RankPool) -> None:
    [accuracy] = ranks1.run(accuracy_by_hand)
    assert accuracy > 0.9


# The command


def test_an_outcome_says_on_what_it_was_measured(tmp_path: Path) -> None:
    machine = Machine(
        processor="Abacus", cores=3, threads_per_rank=1, load=0.5, torch_version="9.9", backend="gloo", ranks=2
    )
    rows: list[Row] = [{"model": "m", "ms": 1.234, "target": None, "payload_bytes": 46_758_400, "ratio": 1.149}]
    outcome = Outcome(title="t", how="medians", machine=machine, rows=rows)
    outcome.write(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["rows"] == rows and written["machine"]["cores"] == 3
    table = outcome.table()
    assert [list(column.cells) for column in table.columns] == [["m"], ["1.2"], [""], ["46.8 MB"], ["1.15"]]
    for word in ("medians", "Abacus", "3 cores", "1 thread", "load 0.5", "torch 9.9", "gloo", "2 ranks"):
        assert word in str(table.caption)


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        (["sync", "--models", "resnet9"], "classification model of torchvision"),
        (["step", "--ranks", "1"], "an integer >= 2"),
        (["step", "--steps", "many"], "an integer >= 8"),
        (["sync", "--json", "no/such/directory/out.json"], "a directory that exists"),
        (["checkpoint", "--steps", "30"], "a multiple of 50"),
        (["checkpoint", "--directory", "no/such/directory"], "a directory that exists"),
        (["think"], "sync"),
    ],
)
def test_wrong_arguments_are_refused_before_ranks_start(
    typed: list[str], right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(typed)
    assert stop.value.code == 2
    assert right in capsys.readouterr().err


@pytest.mark.exhaustive
def test_the_command_starts_its_ranks_and_leaves_none(tmp_path: Path) -> None:
    file, mark = tmp_path / "out.json", f"{tmp_path.name}-{os.getpid()}"
    typed = ["step", "--steps", "8", "--repeats", "1", "--device", "cpu", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *typed],
        env={**os.environ, "BENCH_TEST_MARK": mark, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bare hand-written loop" in done.stdout and "2 ranks on gloo" in done.stdout
    assert len(json.loads(file.read_text())["rows"]) == 9
    assert sorted(os.listdir(tmp_path)) == ["out.json"]
    assert processes_with(mark) == []


def processes_with(mark: str) -> list[str]:
    """Command lines of all processes that inherited the mark."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:  # ended meanwhile
            continue
    return found
