"""Benchmarks of training: step, diagnostics, checkpoint, overlap and modes."""

from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from configs import config, files, node
from rank_pool import RankPool
from this_rank import this_rank
from torch import nn

from benchmarks import bare, checkpoint, configured, diagnostics, modes, overlap, step, yardsticks
from benchmarks.outcome import Outcome
from ddp_agent.checkpoint.writer import Writer
from ddp_agent.config.registry import build
from ddp_agent.data.datasets.article import Article
from ddp_agent.distributed.topology import Topology
from ddp_agent.sync import AllReduce, DiLoCo, Independent, LocalSGD, StreamingDiLoCo
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.trainer import Trainer

MLP_PARAMETERS = 10 * 32 + 32 + 32 * 2 + 2


# A step, and what interrupts it


def step_rows(steps: int) -> list[Any]:
    return list(step.measure(Namespace(steps=steps, repeats=1), this_rank()).rows)


def test_step_prints_every_loop_in_every_setting(ranks2: RankPool) -> None:
    rows, others = ranks2.run(step_rows, 8)
    loops = ["bare hand-written loop", "trainer", "trainer, recording"]
    settings = ["no communication, 1 rank", "gradients, every step", "parameters, every 8 steps"]
    assert [(row["synchronised"], row["loop"]) for row in rows] == [(s, loop) for s in settings for loop in loops]
    assert all(row["us_per_step"] > 0 and row["ratio"] > 0 for row in rows)
    assert [row["synchronised"] for row in others] == [s for s in settings[1:] for _ in loops]


def diagnostics_rows() -> list[Any]:
    return list(diagnostics.measure(Namespace(steps=16, repeats=1), this_rank()).rows)


def test_diagnostics_are_measured_where_there_are_several_ranks(ranks2: RankPool) -> None:
    rows = ranks2.run(diagnostics_rows)[0]
    assert [row["synchronised"] for row in rows] == [setting.name for setting in step.SETTINGS if not setting.alone]
    for row in rows:
        assert row["us_per_step"] > 0
        assert row["share_ratio"] == pytest.approx(
            row["us_per_measurement"] / row["us_per_step"] / diagnostics.INTERVAL
        )


def measurements(every: int) -> int:
    trainer = Trainer(workload().session(LocalSGD(period=8), consensus_every=every))
    step.fit(trainer, 33)
    return len(trainer.session.diagnostics.latest)


def test_only_one_of_the_two_measures(ranks2: RankPool) -> None:
    assert ranks2.run(measurements, diagnostics.MEASURE_EVERY)[0] >= 5
    assert ranks2.run(measurements, step.NEVER) == [0, 0]
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
        assert [row["checkpoints"] for row in rows] == ["none", "before training continues", "beside training"]
        assert begun == {False: 4, True: 4}
        assert rows[0]["ratio"] == 1.0
        assert rows[2]["target"] == pytest.approx(1 / 0.97)
    assert list(tmp_path.iterdir()) == []


def workload() -> step.Workload:
    task = Article(samples=100, test_samples=10, features=10, separation=2.3, loss="cross_entropy").load()
    return step.Workload(task, Topology.create(), torch.device("cpu"))


def traffic_of_16_steps(number: int) -> tuple[int, int, int, int]:
    """Optimizer steps and payload of the loop by hand, then of the trainer."""
    setting = step.SETTINGS[number]
    by_hand = setting.by_hand(workload().share())
    taken = []
    by_hand.optimizer.register_step_post_hook(lambda *_: taken.append(1))
    counter = yardsticks.CollectiveCounter()
    with counter:
        by_hand(16)
    trainer = Trainer(workload().session(setting.sync()))
    step.fit(trainer, 16)
    sent = trainer.session.setup.topology.world.stats.payload_bytes
    return len(taken), counter.payload_bytes, trainer.session.step, sent


def test_both_loops_do_the_same_work(ranks2: RankPool) -> None:
    size = 4 * MLP_PARAMETERS
    assert ranks2.run(traffic_of_16_steps, 0) == [(16, 0, 16, 0)] * 2
    assert ranks2.run(traffic_of_16_steps, 2) == [(16, 2 * size, 16, 2 * size)] * 2
    for steps_by_hand, sent_by_hand, steps, sent in ranks2.run(traffic_of_16_steps, 1):
        assert (steps_by_hand, steps, sent) == (16, 16, 16 * size)
        assert 16 * size <= sent_by_hand < 16 * size + 100  # once DDP also tells ranks the order of its buckets


def weights_by_hand(number: int, steps: int) -> torch.Tensor:
    loop = step.SETTINGS[number].by_hand(workload().share())
    loop(steps)
    return nn.utils.parameters_to_vector(loop.model.parameters()).detach()


@pytest.mark.parametrize(("number", "steps", "same"), [(0, 8, False), (1, 7, True), (2, 8, True), (2, 7, False)])
def test_the_loops_by_hand_synchronise(ranks2: RankPool, number: int, steps: int, same: bool) -> None:
    one, other = ranks2.run(weights_by_hand, number, steps)
    assert torch.equal(one, other) == same


def accuracy_by_hand() -> float:
    data = workload().share()
    loop = bare.independent(data)
    loop(60)
    return float((loop.model(data.inputs).argmax(1) == data.targets).float().mean())


def test_the_loop_by_hand_learns(ranks1: RankPool) -> None:
    [accuracy] = ranks1.run(accuracy_by_hand)
    assert accuracy > 0.9


# Modes


def rounds_of_overlap() -> tuple[list[int], bool]:
    """Return each mode's synchronisations in two rounds of a period, and whether a fragment is still in flight."""
    streaming = StreamingDiLoCo(period=4, fragments=2, delay=1)
    modes = [Independent(), streaming, DiLoCo(period=4), AllReduce()]
    for mode in modes:
        run = overlap.loop(mode, 2, this_rank())
        run(4)
        run(4)
    return [internals(mode).syncs for mode in modes], any(stream.under_way for stream in streaming._streams)


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


@pytest.mark.exhaustive
def test_every_mode_has_its_cost(ranks2: RankPool) -> None:
    rows, _ = ranks2.run(mode_rows)
    assert sorted(row["sync"] for row in rows) == sorted(files("sync"))
    assert rows[0]["sync"] == "independent" and rows[0]["ratio"] == 1.0


def mode_rows() -> list[Any]:
    return list(modes.measure(Namespace(steps=modes.PERIOD, repeats=1, batch=2), this_rank()).rows)


def test_modes_have_the_values_that_are_asked_for() -> None:
    built = configured.modes(period=6, switch_step=3)
    assert sorted(built) == files("sync")
    for name, values in {
        "diloco": {"period": 6},
        "post_local_sgd": {"period": 6, "switch_step": 3},
        "allreduce": {},
    }.items():
        assert repr(built[name]) == repr(build("sync", node("sync", name, **values)))
