"""Runs that state their traffic: modes and reducers that the plan has never heard of are priced by what they send."""

import json
from pathlib import Path
from typing import Any

import pytest
from pieces import MODES as PIECES
from pieces import REDUCERS
from planned_runs import MODES, STEPS, TENSOR, World, seconds, sweep, write
from wire_totals import total_wire_bytes

from ddp_agent.distributed.traffic import Collective, RunSizes, to_plain, total_bytes
from ddp_agent.plan.__main__ import main
from ddp_agent.plan.measured import Measured, labels_of, measure, read
from ddp_agent.plan.traffic import loads

WORLD = World()
# Half of the tensor at a time, on its way for one step; and a quarter of it to everybody, then a share of that.
FRAGMENT = Collective(kind="all_reduce", payload_bytes=TENSOR / 2, count=STEPS / 8, ranks=2, cover="steps", delay=1,
                      period=8, shortest=4)  # fmt: skip
PHASES = [
    Collective(kind="all_to_all", payload_bytes=TENSOR / 4, count=STEPS, ranks=2),
    Collective(kind="all_gather", payload_bytes=TENSOR / 8, count=STEPS, ranks=2, sharded=True),
]
NOVEL: dict[str, tuple[list[Collective], str]] = {
    "streaming_diloco H=8": ([FRAGMENT, FRAGMENT], "novel H=8"),
    "compressed int8": (PHASES, "novel nobits"),
}


def plan(tmp_path: Path, *arguments: str | Path) -> dict[tuple[str, int], dict[str, Any]]:
    file = tmp_path / "plan.json"
    assert main([*map(str, arguments), "--json", str(file)]) == 0
    return {(each["setting"], each["ranks"]): each for each in json.loads(file.read_text())["predictions"]}


def measured(path: Path) -> Measured:
    runs, _ = read([path])
    (found,) = measure(runs, labels_of(runs))
    return found


@pytest.mark.parametrize("label", NOVEL)
def test_a_mode_and_a_reducer_that_nobody_knows_cost_what_they_state(tmp_path: Path, label: str) -> None:
    stated, named = NOVEL[label]
    runs = sweep(tmp_path / "runs", WORLD)
    reducer: dict[str, Any] = {"reducer": "nobits"} if "reducer" in MODES[label] else {}
    novel = write(tmp_path / "novel", WORLD, label, sync="novel", traffic=to_plain(stated), **reducer)
    found = plan(tmp_path, runs, novel, "--ranks", "2,4,8", "--period", "2,4,16")
    for ranks in (2, 4, 8):
        moving_s, waiting_s = seconds(WORLD, MODES[label], ranks)
        assert found[named, ranks]["moving_s"] == pytest.approx(moving_s)
        assert found[named, ranks]["waiting_s"] == pytest.approx(waiting_s)
        for key in ("wire_bytes_per_step", "samples_per_s"):
            assert found[named, ranks][key] == pytest.approx(found[label, ranks][key])
    periods = {setting for setting, _ in found if setting.startswith("novel")}
    expected = {"novel H=8", "novel H=4", "novel H=16"} if stated[0].period else {"novel nobits"}
    assert periods == expected  # 2 is too short for two fragments with a delay


def test_control_without_a_statement_an_unknown_mode_is_taken_to_block(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "runs", WORLD)
    label = "streaming_diloco H=8"
    found = plan(tmp_path, runs, write(tmp_path / "novel", WORLD, label, sync="novel"), "--rate", "100mbit")
    assert found["novel H=8", 2]["moving_s"] > found[label, 2]["moving_s"] + 1e-3


# The formulas of the package, priced.

SHAPES = [(256, 128), (128,), (128, 254), (128,)]  # 65,536 numbers: nothing is padded


def sizes(ranks: int) -> RunSizes:
    return RunSizes(steps=STEPS, ranks=ranks, ranks_per_node=2, names=["a", "b", "c", "d"], shapes=SHAPES,
                    trained_shapes=SHAPES, itemsize=4, buffer_numbers=512, integer_numbers=4)  # fmt: skip


def allowed() -> list[tuple[str, str]]:
    from loops import refusal

    pairs = [(mode, reducer) for mode in PIECES for reducer in REDUCERS]
    return [(mode, reducer) for mode, reducer in pairs if refusal(PIECES[mode](), REDUCERS[reducer]()) is None]


@pytest.mark.parametrize(("mode", "reducer"), allowed())
def test_every_mode_and_reducer_is_predicted_to_send_what_it_states_among_more_ranks(
    tmp_path: Path, mode: str, reducer: str
) -> None:
    stated = {ranks: PIECES[mode]().traffic(sizes(ranks), REDUCERS[reducer]()) for ranks in (4, 8)}
    totals: dict[str, Any] = {"collectives": sum(each.calls for each in stated[4]),
              "payload_bytes": total_bytes(stated[4])}  # fmt: skip
    path = write(tmp_path, WORLD, "compressed", 4, sync=mode, reducer=reducer, traffic=to_plain(stated[4]), **totals)
    found = measured(path)
    assert bool(found.traffic) == bool(loads(found)) == (PIECES[mode]().traits.sends != "nothing")
    for ranks in (4, 8):
        sent = sum(load.sent_bytes(ranks) for load in loads(found))
        assert sent == pytest.approx(total_wire_bytes(stated[ranks]) / STEPS)


def test_only_what_overlaps_is_taken_for_hidden() -> None:
    """The second phase of a reducer begins when the first has arrived."""
    streaming = PIECES["streaming_diloco"]()
    covers = {
        reducer: [each.cover for each in streaming.traffic(sizes(4), REDUCERS[reducer]()) if each.delay or each.sharded]
        for reducer in ("dense", "int8")
    }
    assert covers == {"dense": ["steps"] * 2, "int8": ["steps", "nothing"] * 2}


def test_a_cadences_periods_and_a_sparse_tensor_are_those_that_were_counted(tmp_path: Path) -> None:
    """Stated are 10 periods of at most the whole tensor; 4 were counted, with a tenth of it."""
    stated = [
        Collective(kind="all_reduce", payload_bytes=TENSOR, count=10, ranks=2, period=8, varies=True, at_most=True)
    ]
    path = write(tmp_path, WORLD, "local_sgd H=8", sync="novel", traffic=to_plain(stated), collectives=4,
                 payload_bytes=0.4 * TENSOR)  # fmt: skip
    (load,) = loads(measured(path))
    assert load.per_step == pytest.approx(4 / STEPS)
    assert load.size_bytes == pytest.approx(TENSOR / 10)
    assert measured(path).period is None


@pytest.mark.parametrize(
    "traffic", [7, [7], [{"kind": "all_reduce"}], [{"kind": "telepathy", "payload_bytes": 1}], [{"payload_bytes": "x"}],
                [{"kind": "all_reduce", "payload_bytes": "many"}]]
)  # fmt: skip
def test_another_form_is_refused(tmp_path: Path, traffic: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "novel", WORLD, "compressed", traffic=traffic)
    assert main([str(tmp_path / "novel")]) != 0
    assert "traffic: its summary.json has no list of collectives" in capsys.readouterr().err
