"""The clock: every moment belongs to one phase, and the parts sum to the whole."""

import random
from collections.abc import Iterator
from contextlib import suppress
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


def spend(clock: Clock, time: Time, phase: Phase, seconds: float) -> None:
    with clock.phase(phase):
        time.now += seconds


def test_each_phase_gets_its_own_time(time: Time) -> None:
    clock = Clock()
    for phase, seconds in (("data", 1), ("compute", 2), ("data", 4), ("eval", 8), ("checkpoint", 16), ("compute", 32)):
        spend(clock, time, phase, seconds)  # type: ignore[arg-type]
    assert clock.state_dict() == {"data": 5, "compute": 34, "eval": 8, "checkpoint": 16}


def test_a_phase_within_another_is_taken_from_it(time: Time) -> None:
    clock = Clock()
    with clock.phase("compute"):
        time.now += 1
        with clock.phase("eval"):
            time.now += 2
            spend(clock, time, "checkpoint", 4)
            time.now += 8
        time.now += 16
    assert clock.state_dict() == {"data": 0, "compute": 17, "eval": 10, "checkpoint": 4}


def test_an_exception_restores_the_phase_before(time: Time) -> None:
    clock = Clock()
    with clock.phase("compute"):
        with suppress(RuntimeError), clock.phase("eval"):
            time.now += 1
            raise RuntimeError
        time.now += 2
    time.now += 4
    assert clock.state_dict() == {"data": 0, "compute": 2, "eval": 1, "checkpoint": 0}


def test_items_are_timed_while_they_arrive(time: Time) -> None:
    def items() -> Iterator[int]:
        for item in range(3):
            time.now += 1
            yield item
        time.now += 5
        raise OSError("a reader died")

    clock = Clock()
    with clock.phase("compute"):
        arriving = clock.timed("data", items())
        for _ in range(3):
            next(arriving)
            time.now += 10
        with pytest.raises(OSError, match="died"):
            next(arriving)
        time.now += 100
    assert clock.state_dict() == {"data": 8, "compute": 130, "eval": 0, "checkpoint": 0}
    assert list(Clock().timed("data", iter("ab"))) == ["a", "b"]


def test_parts_sum_to_the_whole(time: Time) -> None:
    """The parts of any nesting of phases sum to wall-clock minus the time when the clock stood, at any moment."""
    clock, generator = Clock(), random.Random(0)
    started, stood = time.now, 0

    def nest(depth: int) -> None:
        nonlocal stood
        for _ in range(generator.randrange(4)):
            with clock.phase(generator.choice(get_args(Phase))):
                time.now += generator.randrange(5)
                read = clock.read(blocked_s=0.0)
                assert read["wall_s"] == time.now - started - stood
                assert read["train_s"] == read["data_s"] + read["compute_s"] + read["exposed_comm_s"]
                assert read["wall_s"] == read["train_s"] + read["eval_s"] + read["checkpoint_s"]
                if depth < 4:
                    nest(depth + 1)
            if depth == 0:
                time.now += 3
                stood += 3

    for _ in range(30):
        nest(0)
    assert 0 < stood < clock.read(0.0)["wall_s"]


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
    with clock.phase("compute"):
        time.now += 5
        assert clock.state_dict() == clock.state_dict()
        time.now += 2
        assert clock.read(0.0)["compute_s"] == 7


def test_a_clock_stands_still_outside_of_phases(time: Time) -> None:
    clock = Clock()
    time.now += 5
    assert clock.read(0.0)["wall_s"] == 0
    spend(clock, time, "data", 3)
    time.now += 50
    assert clock.read(0.0)["wall_s"] == 3


def test_a_resumed_run_goes_on_from_the_snapshot(time: Time) -> None:
    first = Clock()
    spend(first, time, "compute", 5)
    kept = first.state_dict()
    spend(first, time, "compute", 1000)  # what the first run did after its checkpoint is lost
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
