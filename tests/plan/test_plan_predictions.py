"""Predictions for other links and numbers of ranks, against a made-up world."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_cases import LOOPBACK, SLOW, WORLD, measured, plan, predicted
from planned_runs import LATER, MODES, TENSOR, seconds, speed, sweep, write

from ddp_agent.plan.fit import Costs, fit

LATE = replace(SLOW, latency_s=0.01)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Measured on 2 ranks at 1 Gbit/s, predicted for more and for a link that is slower and far."""
    path = tmp_path_factory.mktemp("elsewhere")
    runs = sweep(path / "runs", WORLD)
    return plan(path, runs, "--rate", "100mbit", "--latency", "10ms", "--ranks", "2,4,8")


@pytest.mark.parametrize("label", MODES)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_another_link_and_more_ranks(elsewhere: dict[str, Any], label: str, ranks: int) -> None:
    """Weak scaling: the micro-batch and its time stay, the global batch grows."""
    found = predicted(elsewhere, ranks)[label]
    moving_s, waiting_s = seconds(LATE, MODES[label], ranks)
    assert found["samples_per_s"] == pytest.approx(speed(LATE, label, ranks))
    assert (found["moving_s"], found["waiting_s"]) == pytest.approx((moving_s, waiting_s))
    assert found["exposed_share"] == pytest.approx((moving_s + waiting_s) / (LATE.local_s + moving_s + waiting_s))


@pytest.mark.parametrize("label", MODES)
def test_bytes_among_more_ranks_are_what_such_a_run_counts(
    tmp_path: Path, elsewhere: dict[str, Any], label: str
) -> None:
    written = json.loads((write(tmp_path, WORLD, label, 8) / "summary.json").read_text())
    counted = written["wire_bytes"] / written["steps"]
    assert predicted(elsewhere, 8)[label]["wire_bytes_per_step"] == pytest.approx(counted)


def test_strong_scaling_shares_the_batch(tmp_path: Path) -> None:
    outcome = plan(tmp_path, sweep(tmp_path / "runs", WORLD), "--ranks", "4", "--scaling", "strong")
    found = predicted(outcome, 4)["independent"]
    assert found["global_batch_size"] == 64 and found["step_s"] == pytest.approx(WORLD.local_s / 2)


def test_a_rate_replaces_an_unknown_links_own(tmp_path: Path) -> None:
    outcome = plan(tmp_path, sweep(tmp_path / "runs", LOOPBACK), "--rate", "100mbit", "--ranks", "2")
    replaced = replace(SLOW, host_byte_s=0.0, headers=Costs(0, 0).headers)
    assert predicted(outcome, 2)["compressed"]["samples_per_s"] == pytest.approx(speed(replaced, "compressed", 2))


def test_compute_measured_on_as_many_ranks_is_used(tmp_path: Path) -> None:
    """They share cores: 35 ms a step instead of 20; a mode that computes half as much again does so there, too."""
    sweep(tmp_path / "runs", WORLD, ["independent", "compressed"])
    write(tmp_path / "runs" / "int8", WORLD, "compressed int8", extra_s=0.01)
    there = write(tmp_path / "there", replace(WORLD, local_s=0.035, micro_batch=16), "independent", 4)
    found = predicted(plan(tmp_path, tmp_path / "runs", "--ranks", "4", "--compute", there), 4)
    assert found["compressed int8"]["local_s"] == pytest.approx(0.035 * 1.5)
    assert {each["global_batch_size"] for each in found.values()} == {64}
    assert found["compressed"]["waiting_s"] == pytest.approx(
        WORLD.spread_s * LATER[4] * 0.035 / 0.02  # ranks that are slower differ by more
    )
    same = predicted(plan(tmp_path, tmp_path / "runs", there, "--ranks", "4"), 4)
    assert same["compressed"]["local_s"] == pytest.approx(0.035)


def test_what_the_formulas_do_not_explain_stays(tmp_path: Path) -> None:
    """5 ms a step beyond them, on a link ten times as slow."""
    sweep(tmp_path / "runs", WORLD)
    path = write(tmp_path / "more", WORLD, "local_sgd H=8")
    summary = json.loads((path / "summary.json").read_text())
    summary["exposed_comm_s"] += 80 * 0.005
    summary["sync"] = "slowmo"
    (path / "summary.json").write_text(json.dumps(summary))
    fitted = fit(measured(tmp_path / "runs"))
    found = predicted(plan(tmp_path, tmp_path / "runs", path, "--rate", "100mbit", "--ranks", "2"), 2)
    moving_s = seconds(SLOW, MODES["local_sgd H=8"], 2)[0]
    assert found["slowmo H=8"]["moving_s"] == pytest.approx(moving_s + 0.005, rel=0.02)
    assert fitted.message_s == pytest.approx(WORLD.message_s)


def test_when_backward_hides_all_a_slower_link_gets_a_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = replace(WORLD, backward_s=1.0)
    outcome = plan(tmp_path, sweep(tmp_path / "runs", hidden), "--rate", "100mbit", "--ranks", "2")
    found = predicted(outcome, 2)["allreduce"]
    transport_s = 2 * WORLD.message_s + TENSOR * SLOW.byte_s
    assert found["at_least"] and found["moving_s"] == pytest.approx(transport_s - TENSOR * (WORLD.byte_s) - 6e-4)
    assert not predicted(outcome, 2)["compressed"]["at_least"]
    assert "≥" in capsys.readouterr().out


def test_other_periods_have_a_time_but_no_quality(tmp_path: Path) -> None:
    outcome = plan(tmp_path, sweep(tmp_path / "runs", WORLD), "--ranks", "2", "--period", "8,32")
    found = predicted(outcome, 2)
    own, longer = found["easgd H=8"], found["easgd H=32"]
    assert longer["moving_s"] == pytest.approx(own["moving_s"] / 4)
    assert longer["waiting_s"] == pytest.approx(own["waiting_s"] / 2)  # a quarter as often, after sqrt(4) the drift
    assert longer["test_metric"] is None and own["test_metric"] == 0.9
    assert sum("easgd" in setting for setting in found) == 2 and "compressed H=32" not in found


def test_with_another_period_gradients_still_go_every_step(tmp_path: Path) -> None:
    """The first quarter of the steps averages gradients; behind them come 3/4 of the steps with a period."""
    outcome = plan(tmp_path, sweep(tmp_path / "runs", WORLD), "--ranks", "2", "--period", "16")
    sent = {setting: each["wire_bytes_per_step"] / TENSOR for setting, each in predicted(outcome, 2).items()}
    assert sent["post_local_sgd H=8"] == pytest.approx(1 / 4 + 3 / 4 / 8)
    assert sent["post_local_sgd H=16"] == pytest.approx(1 / 4 + 3 / 4 / 16)


def test_a_period_too_short_for_its_delays_is_not_predicted(tmp_path: Path) -> None:
    """Two fragments with a delay of 1 step need 4."""
    outcome = plan(tmp_path, sweep(tmp_path / "runs", WORLD), "--ranks", "2", "--period", "2,4")
    found = {setting for setting in predicted(outcome, 2) if "streaming" in setting}
    assert found == {"streaming_diloco H=4", "streaming_diloco H=8"}


def test_a_hierarchy_passes_the_link_less(tmp_path: Path) -> None:
    """8 ranks in 2 nodes: gradients in the node every step, parameters over all every 8."""
    runs = sweep(tmp_path / "runs", replace(WORLD, message_s=0.0, host_byte_s=0.0, headers=1.0, spread_s=0.0))
    options = ("--rate", "1gbit", "--ranks", "8", "--ranks-per-node", "4", "--node-rate", "8gbit")
    found = predicted(plan(tmp_path, runs, *options), 8)
    on_link, in_node = 8e-9, 1e-9
    two_level_s = 1.5 * TENSOR * in_node + 1.0 * TENSOR * on_link
    assert found["hierarchical H=1,8"]["moving_s"] == pytest.approx(1.5 * TENSOR * in_node + two_level_s / 8)
    assert found["hierarchical H=1,8"]["wire_bytes_per_step"] == pytest.approx((1.5 + 1.75 / 8) * TENSOR)
    assert found["compressed"]["moving_s"] == pytest.approx(two_level_s)
    assert found["compressed"]["all_reduce"] == "two-level"


def test_a_longer_global_period_leaves_the_nodes_theirs(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "runs", replace(WORLD, host_byte_s=0.0, headers=1.0))
    alone = predicted(plan(tmp_path, runs, "--ranks", "8", "--period", "32"), 8)
    assert alone["hierarchical H=1,32"]["moving_s"] == pytest.approx(alone["hierarchical H=1,8"]["moving_s"] / 4)
    assert alone["hierarchical H=1,32"]["waiting_s"] == pytest.approx(alone["hierarchical H=1,8"]["waiting_s"] / 2)
    options = ("--ranks", "8", "--ranks-per-node", "4", "--node-rate", "8gbit", "--period", "32")
    found = predicted(plan(tmp_path, runs, *options), 8)
    two_levels_s = found["compressed"]["moving_s"]
    in_node_s = found["hierarchical H=1,8"]["moving_s"] - two_levels_s / 8
    assert found["hierarchical H=1,32"]["moving_s"] == pytest.approx(in_node_s + two_levels_s / 32)


def test_on_cpu_all_reduce_is_a_ring_and_on_gpus_what_is_faster(tmp_path: Path) -> None:
    cpu, gpu = (sweep(tmp_path / device, WORLD, device=device) for device in ("cpu", "NVIDIA H200"))

    def algorithm(*arguments: str | Path) -> str:
        found = predicted(plan(tmp_path, *arguments, "--ranks", "256"), 256)
        return str(found["compressed powersgd"]["all_reduce"])

    assert (algorithm(cpu), algorithm(gpu)) == ("ring", "tree")
    assert (algorithm(cpu, "--algorithm", "fastest"), algorithm(gpu, "--algorithm", "ring")) == ("tree", "ring")
