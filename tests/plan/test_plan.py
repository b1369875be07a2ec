"""The cost model on made-up runs whose costs are known: it finds them, predicts other links, and says how well."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planned_runs import LATER, MODES, TENSOR, World, seconds, speed, sweep, write

from ddp_agent.plan.__main__ import main
from ddp_agent.plan.fit import Costs, fit
from ddp_agent.plan.measured import Measured, labels_of, measure, read

WORLD = World()
SLOW = replace(WORLD, rate=1e8)
LOOPBACK = replace(WORLD, rate=None, headers=1.05)


def measured(*directories: Path) -> list[Measured]:
    runs, _ = read(directories)
    return measure(runs, labels_of(runs))


def plan(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    file = tmp_path / "plan.json"
    assert main([*map(str, arguments), "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def predicted(outcome: dict[str, Any], ranks: int) -> dict[str, dict[str, Any]]:
    return {each["setting"]: each for each in outcome["predictions"] if each["ranks"] == ranks}


# The fit


@pytest.mark.parametrize("world", [WORLD, SLOW, LOOPBACK])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_fit_finds_what_the_runs_were_made_of(tmp_path: Path, world: World, ranks: int) -> None:
    costs = fit(measured(sweep(tmp_path, world, n=ranks)))
    assert costs.message_s == pytest.approx(world.message_s, rel=1e-9)
    assert costs.host_byte_s == pytest.approx(world.host_byte_s, rel=1e-6)
    assert costs.link_known == costs.headers_counted == (world.rate is not None)
    if world.rate:
        assert costs.headers == pytest.approx(world.headers)


def test_runs_on_several_links_and_ranks_are_one_fit(tmp_path: Path) -> None:
    sweep(tmp_path / "fast", WORLD, ["compressed", "local_sgd H=8"])
    sweep(tmp_path / "slow", SLOW, ["compressed", "easgd H=8"], n=4)
    costs = fit(measured(tmp_path))
    assert (costs.message_s, costs.host_byte_s) == pytest.approx((WORLD.message_s, WORLD.host_byte_s))


def test_noise_moves_the_fit_by_about_as_much(tmp_path: Path) -> None:
    """3 % of seeded noise on 8 settings of 3 seeds. With one setting doubled it is off by far more."""
    noisy = replace(WORLD, noise=0.03, host_byte_s=2e-8)
    for seed in range(3):
        sweep(tmp_path / str(seed), noisy, seed=seed)
    costs = fit(measured(tmp_path))
    assert costs.message_s == pytest.approx(noisy.message_s, rel=0.1)
    assert costs.host_byte_s == pytest.approx(noisy.host_byte_s, rel=0.1)


def test_costs_are_never_negative(tmp_path: Path) -> None:
    """Bytes that crossed a link faster than it is, as a short burst may."""
    sweep(tmp_path, replace(WORLD, host_byte_s=-2e-9))
    costs = fit(measured(tmp_path))
    assert costs.host_byte_s == 0.0 and costs.message_s > 0


def test_with_messages_of_one_size_all_is_counted_as_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path / "runs", WORLD, ["compressed", "local_sgd H=8"])
    costs = fit(measured(tmp_path / "runs"))
    each_s = 2 * WORLD.message_s + TENSOR * WORLD.host_byte_s
    assert costs.one_size and costs.message_s == 0 and costs.host_byte_s == pytest.approx(each_s / TENSOR)
    outcome = predicted(plan(tmp_path, tmp_path / "runs", "--rate", "100mbit", "--ranks", "2"), 2)
    assert outcome["compressed"]["samples_per_s"] == pytest.approx(speed(SLOW, "compressed", 2))
    assert "equally long" in capsys.readouterr().out


def test_counts_that_older_runs_lack_come_from_their_synchronisations(tmp_path: Path) -> None:
    for label in MODES:
        write(tmp_path / label, LOOPBACK, label, 4, collectives=None)
    costs = fit(measured(tmp_path))
    assert (costs.message_s, costs.host_byte_s) == pytest.approx((LOOPBACK.message_s, LOOPBACK.host_byte_s))


def test_what_is_not_known_to_be_waiting_is_taken_for_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in MODES:
        write(tmp_path / "runs" / label, WORLD, label, straggler_wait_s=None)
    outcome = plan(tmp_path, tmp_path / "runs")
    assert all(each["waiting_s"] == 0 for each in outcome["predictions"])
    assert "taken for moving bytes" in capsys.readouterr().out


# Predictions


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


# Its error


def test_held_out_runs_of_the_same_cluster_are_predicted_exactly(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "runs", WORLD)
    held = sweep(tmp_path / "held", SLOW)
    outcome = plan(tmp_path, runs, "--holdout", held)
    assert len(outcome["checked"]) == len(MODES)
    assert all(abs(each["error"]) < 1e-6 for each in outcome["checked"])


def test_the_error_is_that_of_the_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run measured at 0.8 times the predicted speed was predicted 25 % too fast."""
    runs = sweep(tmp_path / "runs", WORLD)
    slower = 0.25 * 64 / speed(WORLD, "compressed", 2)
    held = write(tmp_path / "held", WORLD, "compressed", extra_s=slower, seed=1)
    as_ever = write(tmp_path / "as_ever", WORLD, "easgd H=8", seed=1)
    outcome = plan(tmp_path, runs, "--holdout", held, as_ever)
    errors = {each["setting"]: each["error"] for each in outcome["checked"]}
    assert errors == {"compressed": pytest.approx(0.25), "easgd H=8": pytest.approx(0, abs=1e-6)}
    assert "mean error 12.5%, largest 25.0%, of 2 measurements" in capsys.readouterr().out


def test_without_held_out_runs_each_setting_is_left_out_in_turn(tmp_path: Path) -> None:
    outcome = plan(tmp_path, sweep(tmp_path / "runs", WORLD))
    errors = {each["setting"]: each["error"] for each in outcome["checked"]}
    assert set(errors) == set(MODES) - {"independent"}
    # Alone what backward hides only a mode's own run can tell.
    assert errors.pop("post_local_sgd H=8") < -0.005
    hidden = errors.pop("allreduce")
    moving_s = speed(replace(WORLD, backward_s=0.0), "allreduce", 2) / speed(WORLD, "allreduce", 2) - 1
    assert hidden == pytest.approx(moving_s) and moving_s < -0.01
    assert all(abs(error) < 1e-6 for error in errors.values())


def test_a_setting_that_is_left_out_has_no_part_in_its_own_prediction(tmp_path: Path) -> None:
    sweep(tmp_path / "runs", WORLD)
    errors = plan(tmp_path, tmp_path / "runs", write(tmp_path / "odd", WORLD, "easgd H=8", extra_s=0.02, seed=1))
    assert {each["setting"]: each["error"] for each in errors["checked"]}["easgd H=8"] > 0.2


# What is used, and what is not


def test_broken_and_killed_runs_are_named_and_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = sweep(tmp_path / "runs", WORLD)
    killed, old = (write(tmp_path / "runs" / name, WORLD, "easgd H=8") for name in ("killed", "old"))
    (killed / "status.json").write_text('{"status": "failed", "rank": 1, "reason": "killed"}')
    summary = json.loads((old / "summary.json").read_text())
    del summary["wire_bytes"]
    (old / "summary.json").write_text(json.dumps(summary))
    outcome = plan(tmp_path, runs)
    assert outcome["fitted"]["runs"] == len(MODES)
    output = capsys.readouterr().out
    assert f"not used: {killed}: failed" in output
    assert f"not used: {old}: its summary.json lacks wire_bytes" in output


def test_settings_that_differ_in_something_else_keep_apart(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a", WORLD, "compressed")
    write(tmp_path / "runs" / "int8", WORLD, "compressed int8")
    other = write(tmp_path / "runs" / "b", WORLD, "compressed")
    config = json.loads((other / ".hydra" / "config.yaml").read_text())
    config["optimizer"]["lr"] = 0.5
    (other / ".hydra" / "config.yaml").write_text(json.dumps(config))
    found = predicted(plan(tmp_path, tmp_path / "runs", "--baseline", "compressed"), 2)
    assert set(found) == {"compressed optimizer.lr=0.1", "compressed optimizer.lr=0.5", "compressed int8"}


def test_where_most_is_sent_in_the_beginning_a_longer_run_is_another_setting(tmp_path: Path) -> None:
    """The first 20 steps are a different share of 160 steps than of 80."""
    for steps in (80, 160):
        for label in ("post_local_sgd H=8", "compressed"):
            write(tmp_path / "runs" / f"{label} {steps}", WORLD, label, steps=steps)
    outcome = plan(tmp_path, tmp_path / "runs", "--baseline", "compressed")
    assert set(predicted(outcome, 2)) == {"compressed", "post_local_sgd H=8 steps=80", "post_local_sgd H=8 steps=160"}


def test_it_is_a_command(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "runs", WORLD)
    command = [sys.executable, "-m", "ddp_agent.plan", str(runs), "--ranks", "2,4", "--rate", "100mbit"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 140
    for expected in ("Fitted", "Assumed", "2 ranks, 100 Mbit/s", "4 ranks, 100 Mbit/s", "Recommended", "mean error"):
        assert expected in done.stdout
