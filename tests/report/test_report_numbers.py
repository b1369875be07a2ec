"""Known numbers in, every figure of the tables out: against scipy, or by hand."""

import json
import shutil
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import pytest
from report_cases import ACCURACY, cells, make_run, make_sweep, printed, result_of

from ddp_agent.report.comparison.intervals import Estimate, estimate, paired_difference, t_quantile
from ddp_agent.report.report_json import report_json

# Student's t


def test_quantiles_are_those_of_a_printed_table() -> None:
    """Two-sided 95 %, as in any textbook."""
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 30: 2.042, 120: 1.980}
    assert {freedom: round(t_quantile(0.975, freedom), 3) for freedom in printed} == printed


@pytest.mark.parametrize("probability", [0.9, 0.975, 0.995, 0.9995])
def test_quantiles_are_scipys(probability: float) -> None:
    scipy = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for freedom in [*range(1, 60), 250, 999]:
        assert t_quantile(probability, freedom) == pytest.approx(scipy.t.ppf(probability, freedom), rel=1e-9)


def test_quantiles_approach_the_normal_distributions() -> None:
    assert t_quantile(0.975, 2_000) == pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-3)


def test_an_interval_by_hand() -> None:
    """Mean 0.93; squared distances 0.0009 + 0.0001 + 0.0016 = 0.0026; s = √0.0013 = 0.0360555; t(2) = 4.302653;
    4.302653 · 0.0360555 / √3 = 0.0895669."""
    found = estimate({0: 0.90, 1: 0.92, 2: 0.97})
    assert (found.mean, found.low, found.high) == pytest.approx((0.93, 0.93 - 0.0895669, 0.93 + 0.0895669), abs=1e-7)


def test_one_value_has_no_interval() -> None:
    assert estimate({3: 0.9}) == Estimate({3: 0.9}, 0.9, None, None)


def test_what_rounding_leaves_of_equal_values_is_no_spread() -> None:
    found = paired_difference({0: 0.92, 1: 0.95, 2: 0.3}, {0: 0.90, 1: 0.93, 2: 0.28})
    assert found is not None and found.low == found.mean == found.high


# The tables


def test_every_figure_of_the_quality_table(tmp_path: Path) -> None:
    """An interval by scipy: of the mean, and of the mean difference within seeds."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    result = result_of(make_sweep(tmp_path, ACCURACY))
    shown = cells(result, "Quality")
    verdicts = {"local_sgd": "no difference shown", "diloco": "worse", "slowmo": "better"}
    for mode, values in ACCURACY.items():
        line = next(line for line in result.lines if line.label == mode)
        low, high = stats.t.interval(0.95, 4, loc=fmean(values), scale=stats.sem(values))
        assert (line.metric.mean, line.metric.low, line.metric.high) == pytest.approx((fmean(values), low, high))
        assert shown[mode]["test accuracy ↑"] == f"{fmean(values):.4f} ± {(high - low) / 2:.4f}"
        if mode != "allreduce":
            within = stats.ttest_rel(values, ACCURACY["allreduce"])
            low, high = within.confidence_interval(0.95)
            assert line.difference is not None
            assert (line.difference.low, line.difference.high) == pytest.approx((low, high))
            assert shown[mode]["difference to allreduce"] == (
                f"{(low + high) / 2:+.4f} ± {(high - low) / 2:.4f}".replace("-", "−")
            )
            assert (line.verdict != "no difference shown") == (within.pvalue < 0.05)
            assert shown[mode]["verdict"] == f"{verdicts[mode]} (n=5 seeds)"
    assert shown["allreduce"]["difference to allreduce"] == "–"
    assert shown["allreduce"]["verdict"] == "baseline"


def test_differences_are_paired_by_seed_in_whatever_order_runs_come(tmp_path: Path) -> None:
    """Unpaired, seeds that differ by ten times more than the modes would hide the difference."""
    seeds = (3, 11, 2, 7)
    for index, seed in enumerate(seeds):
        make_run(tmp_path / f"a{index}", seed=seed, test_metric=0.5 + seed / 50)
        make_run(tmp_path / f"b{-index}", seed=seeds[-1 - index], sync="diloco",
                 test_metric=0.5 + seeds[-1 - index] / 50 - 0.010 - 0.001 * index)  # fmt: skip
    (_, line) = result_of(tmp_path).lines
    assert line.difference is not None
    assert line.difference.by_seed == pytest.approx({3: -0.013, 11: -0.012, 2: -0.011, 7: -0.010})
    # mean −0.0115; s = √(5e-6 / 3) = 0.00129099; t(3) = 3.182446; half = 3.182446 · 0.00129099 / 2 = 0.0020543
    assert (line.difference.low, line.difference.high) == pytest.approx((-0.0135543, -0.0094457), abs=1e-7)
    assert line.verdict == "worse"


def test_less_is_better_turns_the_verdicts_round(tmp_path: Path) -> None:
    make_sweep(tmp_path, ACCURACY, metric_name="rmse")
    verdicts = {line.label: line.verdict for line in result_of(tmp_path).lines}
    assert verdicts == {
        "allreduce": "baseline", "local_sgd": "no difference shown", "diloco": "better", "slowmo": "worse"
    }  # fmt: skip


def test_one_seed_has_no_interval_and_no_verdict_and_says_so(tmp_path: Path) -> None:
    result = result_of(make_sweep(tmp_path, {"allreduce": (0.91,), "diloco": (0.93,)}))
    assert cells(result, "Quality")["diloco"]["test accuracy ↑"] == "0.9300"
    assert cells(result, "Quality")["diloco"]["difference to allreduce"] == "+0.0200"
    assert cells(result, "Quality")["diloco"]["verdict"] == "no verdict (one seed)"
    text = printed(result)
    assert (
        "There is no verdict yet. With one seed, nothing shows what another seed would have changed between allreduce "
        "and diloco: run more seeds, such as seed=0,1,2. The best test accuracy of these runs is diloco's, 0.9300."
    ) in text
    assert "±" not in text and "95 %" not in text


def test_equal_differences_are_no_interval_to_judge_by(tmp_path: Path) -> None:
    """Accuracy comes in steps of one test sample, so two seeds easily differ by the same step."""
    result = result_of(make_sweep(tmp_path, {"allreduce": (0.91, 0.93), "a": (0.92, 0.94), "b": (0.91, 0.93)}))
    verdicts = {row: row_cells["verdict"] for row, row_cells in cells(result, "Quality").items()}
    assert verdicts == {
        "allreduce": "baseline",
        "a": "no verdict (all 2 differences are equal)",
        "b": "no difference shown (n=2 seeds)",
    }
    for job in ("4", "5"):
        shutil.rmtree(tmp_path / job)
    assert (
        "There is no verdict yet. a differs from allreduce by the same amount with every seed, so nothing shows how "
        "large chance is: run more seeds. The best test accuracy of these runs is a's, 0.9300 ± "
    ) in printed(result_of(tmp_path))


def test_each_reason_for_no_verdict_is_a_sentence_with_its_remedy(tmp_path: Path) -> None:
    values = {"allreduce": {0: 0.91, 1: 0.93}, "a": {0: 0.92, 1: 0.94}, "b": {0: 0.5}, "c": {7: 0.5}, "d": {7: 0.5}}
    for mode, by_seed in values.items():
        for seed, value in by_seed.items():
            make_run(tmp_path / f"{mode}{seed}", sync=mode, seed=seed, test_metric=value)
    text = printed(result_of(tmp_path))
    assert "a differs from allreduce by the same amount with every seed" in text
    assert "With one seed, nothing shows what another seed would have changed between allreduce and b" in text
    assert "c and d have no seed in common with allreduce: run both with the same seeds." in text


def test_seeds_that_one_mode_lacks_are_noted_and_left_out_of_its_difference(tmp_path: Path) -> None:
    for mode, seeds in {"allreduce": (0, 1, 2, 3), "diloco": (0, 1, 2, 9), "slowmo": (9,)}.items():
        for seed in seeds:
            value = {9: 0.1}.get(seed, 0.9) + seed / 1000 + (mode == "diloco") * 0.01 * (1 + seed)
            make_run(tmp_path / f"{mode}{seed}", sync=mode, seed=seed, test_metric=value)
    result = result_of(tmp_path)
    diloco, slowmo = result.lines[1:]
    assert diloco.metric.n == 4
    assert diloco.difference is not None
    assert diloco.difference.by_seed == pytest.approx({0: 0.01, 1: 0.02, 2: 0.03})
    assert (slowmo.difference, slowmo.verdict, slowmo.reason) == (None, "no verdict", "no seed in common")
    text = printed(result)
    assert "allreduce lacks seed 9, which others have." in text
    assert "diloco lacks seed 3, which others have; its difference is over the 3 seeds in common." in text
    assert "slowmo lacks seeds 0, 1, 2 and 3, which others have; it has none in common with the baseline." in text


def test_the_number_of_comparisons_is_noted(tmp_path: Path) -> None:
    result = result_of(make_sweep(tmp_path, ACCURACY))
    assert "3 comparisons with allreduce, each at 95 %: of modes that do not differ at all, about one in" in printed(
        result
    )


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.01234567, 0.01334567), "0.01285"),
        ((24.53, 24.55), "24.540"),
        ((1312.41, 1312.49), "1312.5"),
        ((0, 0), "0.0000"),
    ],
)
def test_as_many_digits_as_tell_modes_apart(tmp_path: Path, values: tuple[float, float], shown: str) -> None:
    result = result_of(make_sweep(tmp_path, {"allreduce": values}))
    assert cells(result, "Quality")["allreduce"]["test accuracy ↑"].startswith(f"{shown} ± ")


# Costs


def test_every_figure_of_the_cost_table(tmp_path: Path) -> None:
    costs: dict[str, Any] = {
        "wire_bytes": (12_000_000, 14_000_000),
        "syncs": (88, 89),
        "train_s": (10.0, 30.0),
        "samples_per_s": (1200.0, 1300.0),
        "exposed_comm_s": (2.0, 3.0),  # 20 % and 10 %
        "straggler_wait_s": (0.5, 2.4),  # 5 % and 8 %
        "consensus_distance": (0.25, 0.35),
        "consensus_relative": (0.01, 0.02),
        "peak_memory_bytes": (800e6, 900e6),
        "data_s": (1.0, 2.0),
        "compute_s": (7.0, 25.0),
        "eval_s": (0.5, 0.7),
        "checkpoint_s": (0.1, 0.3),
    }
    for seed in (0, 1):
        make_run(tmp_path / str(seed), seed=seed, **{key: values[seed] for key, values in costs.items()})
    result = result_of(tmp_path)
    assert cells(result, "Cost")["allreduce"] == {
        "mode": "allreduce", "MB sent": "13.0", "syncs": "88.5", "training s": "20.0", "samples/s": "1,250",
        "exposed comm. %": "15.0", "of which waiting %": "6.50", "consensus distance": "0.3",
        "relative to ‖w‖": "0.015", "peak memory MB": "850",
    }  # fmt: skip
    assert result.baseline.parts_s == pytest.approx({
        "data": 1.5, "compute": 16.0, "moving bytes": 1.05, "waiting for stragglers": 1.45, "evaluation": 0.6,
        "checkpoints": 0.2,
    })  # fmt: skip


def test_what_no_row_knows_is_no_column_but_null_in_the_document(tmp_path: Path) -> None:
    make_run(tmp_path / "a", exposed_comm_s=1.0)
    make_run(tmp_path / "b", exposed_comm_s=1.0, sync="diloco", straggler_wait_s=0.5, syncs=None)
    result = result_of(tmp_path)
    cost = cells(result, "Cost")
    assert "samples/s" not in cost["diloco"]
    assert (cost["diloco"]["syncs"], cost["allreduce"]["syncs"]) == ("–", "30")
    assert (cost["diloco"]["of which waiting %"], cost["allreduce"]["of which waiting %"]) == ("16.7", "–")
    rows = json.loads(report_json(result, []))["rows"]
    assert [row["costs"]["samples_per_s"] for row in rows] == [None, None]
    assert rows[0]["parts_s"] == {"communication": 1.0}  # nobody printed waiting from moving bytes
    assert rows[1]["parts_s"] == {"moving bytes": 0.5, "waiting for stragglers": 0.5}


def test_a_mean_over_some_of_the_seeds_is_none(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0, syncs=10)
    make_run(tmp_path / "b", seed=1, syncs=None)
    assert result_of(tmp_path).baseline.costs["syncs"] is None


# To the target


def test_the_way_to_the_target_ends_at_the_first_evaluation_at_or_beyond_it(tmp_path: Path) -> None:
    """The target of 0.8 is reached after 20 steps (exactly), after 10 (and lost again), and never."""
    curves = {0: (0.7, 0.8, 0.9), 1: (0.85, 0.7, 0.75), 2: (0.5, 0.6, 0.7999)}
    for seed, curve in curves.items():
        make_run(tmp_path / f"a{seed}", seed=seed, curve=curve, test_metric=curve[-1])
        if seed < 2:
            make_run(tmp_path / f"b{seed}", seed=seed, sync="diloco", curve=curve, test_metric=curve[-1])
    result = result_of(tmp_path, target=0.8)
    shown = cells(result, "Until test accuracy 0.8")
    assert shown["diloco"] == {
        "mode": "diloco", "steps": "15", "seconds": "1.50", "MB sent": "1.50", "reached by": "2 of 2 seeds"
    }  # fmt: skip
    assert shown["allreduce"] == {
        "mode": "allreduce", "steps": "–", "seconds": "–", "MB sent": "–", "reached by": "2 of 3 seeds"
    }  # fmt: skip
    first, second = (row["to_target"] for row in json.loads(report_json(result, []))["rows"])
    assert first == {"reached": 2, "of": 3, "steps": None, "seconds": None, "wire_bytes": None}
    assert second["steps"]["by_seed"] == {"0": 20, "1": 10}
    assert (second["steps"]["mean"], second["seconds"]["mean"], second["wire_bytes"]["mean"]) == (15, 1.5, 1_500_000)


def test_a_falling_metric_reaches_its_target_from_above(tmp_path: Path) -> None:
    make_run(tmp_path / "a", metric_name="rmse", curve=(0.9, 0.5, 0.3), test_metric=0.3)
    assert cells(result_of(tmp_path, target=0.5), "Until")["allreduce"]["steps"] == "20"


def test_the_runs_own_target_is_used_unless_they_differ(tmp_path: Path) -> None:
    make_run(tmp_path / "a", target=0.7)
    assert cells(result_of(tmp_path), "Until test accuracy 0.7")["allreduce"]["steps"] == "20"
    make_run(tmp_path / "b", target=0.6, sync="diloco")
    result = result_of(tmp_path)
    assert result.target is None
    assert "Not all runs had the same target (0.6 and 0.7): --target chooses one." in printed(result)
    assert result_of(tmp_path, target=0.9).target == 0.9


def test_the_runs_own_target_that_nobody_reached_is_null_and_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", target=0.99)
    result = result_of(tmp_path)
    assert cells(result, "Until")["allreduce"] == {"mode": "allreduce", "reached by": "0 of 1 seed"}
    assert "No run reached the target 0.99." in printed(result)
