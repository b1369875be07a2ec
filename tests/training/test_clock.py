"""The clock: every moment belongs to one phase, and the parts sum to the whole."""

import random
from typing import get_args

import pytest

from ddp_agent.training import clock as module
from ddp_agent.training.clock import Clock, Phase


class Time:
    """A time source that a test sets. Whole seconds, so that sums are exact."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    source = Time()
    monkeypatch.setattr(module, "time", source)
    return source


def spend(clock: Clock, time: Time, phase: Phase | None, seconds: float) -> None:
    clock.enter(phase)
    time.now += seconds


def test_each_phase_gets_its_own_time(time: Time) -> None:
    clock = Clock()
    for phase, seconds in (("data", 1), ("compute", 2), ("data", 4), ("eval", 8), ("checkpoint", 16), ("compute", 32)):
        spend(clock, time, phase, seconds)  # type: ignore[arg-type]
    assert clock.state_dict() == {"data": 5, "compute": 34, "eval": 8, "checkpoint": 16}


def test_parts_sum_to_the_whole(time: Time) -> None:
    """Of any sequence of phases, read at any moment: wall-clock minus the time when the clock stood."""
    clock, generator = Clock(), random.Random(0)
    started, stood = time.now, 0
    for _ in range(200):
        phase, seconds = generator.choice([*get_args(Phase), None]), generator.randrange(5)
        spend(clock, time, phase, seconds)
        stood += seconds if phase is None else 0
        read = clock.read(blocked_s=0.0)
        assert read["wall_s"] == time.now - started - stood
        assert read["train_s"] == read["data_s"] + read["compute_s"] + read["exposed_comm_s"]
        assert read["wall_s"] == read["train_s"] + read["eval_s"] + read["checkpoint_s"]
    assert 0 < stood < read["wall_s"]


def test_communication_is_a_part_of_the_compute_phase(time: Time) -> None:
    clock = Clock()
    spend(clock, time, "compute", 10)
    spend(clock, time, "eval", 3)
    assert clock.read(blocked_s=4.0) == {
        "train_s": 10,
        "wall_s": 13,
        "data_s": 0,
        "compute_s": 6,
        "exposed_comm_s": 4,
        "eval_s": 3,
        "checkpoint_s": 0,
    }


def test_reading_neither_ends_a_phase_nor_counts_it_twice(time: Time) -> None:
    clock = Clock()
    spend(clock, time, "compute", 5)
    assert clock.state_dict() == clock.state_dict()
    time.now += 2
    assert clock.read(0.0)["compute_s"] == 7


def test_a_clock_that_was_not_started_or_is_stopped_stands_still(time: Time) -> None:
    clock = Clock()
    time.now += 5
    assert clock.read(0.0)["wall_s"] == 0
    spend(clock, time, "data", 3)
    spend(clock, time, None, 50)
    assert clock.read(0.0)["wall_s"] == 3


def test_a_resumed_run_goes_on_from_the_snapshot(time: Time) -> None:
    first = Clock()
    spend(first, time, "compute", 5)
    kept = first.state_dict()
    time.now += 1000  # what the first run did after its checkpoint is lost
    first.enter(None)
    second = Clock()
    second.load_state_dict(kept)
    spend(second, time, "compute", 2)
    assert second.read(0.0)["wall_s"] == 7
    assert kept["compute"] == 5


def test_every_phase_is_counted_somewhere(time: Time) -> None:
    for phase in get_args(Phase):
        clock = Clock()
        spend(clock, time, phase, 1)
        assert clock.read(0.0)["wall_s"] == 1, phase
