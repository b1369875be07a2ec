"""Timing in rounds, and the table that comes of it."""

import functools
import json
from pathlib import Path

import pytest
import torch.distributed as dist
from rank_pool import RankPool

from benchmarks.outcome import Machine, Outcome, Row
from benchmarks.rounds import Timing, take_turns
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.process_group_comm import world_comm


def turns_of(seconds: dict[str, list[list[float]]]) -> dict[str, Timing]:
    """Time contenders that report `seconds[name][rank]`; the first number belongs to the warm-up."""
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


# The table


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
