"""Known numbers in, every figure of the tables out: against scipy, or by hand."""

import json
import shutil
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import pytest
from report_cases import cells, make_run, make_sweep, metrics, printed, result_of

from ddp_agent.report.comparison.intervals import Estimate, estimate, paired_difference, t_quantile
from ddp_agent.report.figures.axes import metric_limits
from ddp_agent.report.figures.pareto import front
from ddp_agent.report.report_json import report_json
from ddp_agent.report.runs.run import ReportError

# Made-up accuracies of five seeds; the seeds differ more among one another than the modes within each.
ACCURACY = {
    "allreduce": (0.9012, 0.9187, 0.8954, 0.9101, 0.9043),
    "local_sgd": (0.9020, 0.9176, 0.8961, 0.9088, 0.9050),
    "diloco": (0.8913, 0.9099, 0.8851, 0.9017, 0.8930),
    "slowmo": (0.9064, 0.9231, 0.9010, 0.9149, 0.9098),
}


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
    for place, seed in enumerate(seeds):
        make_run(tmp_path / f"a{place}", seed=seed, test_metric=0.5 + seed / 50)
        make_run(tmp_path / f"b{-place}", seed=seeds[-1 - place], sync="diloco",
                 test_metric=0.5 + seeds[-1 - place] / 50 - 0.010 - 0.001 * place)  # fmt: skip
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
    assert "No verdicts: with one seed, nothing shows what another seed would have changed." in text
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
    assert "No verdicts: all 2 differences are equal." in printed(result_of(tmp_path))


def test_seeds_that_one_mode_lacks_are_said_and_left_out_of_its_difference(tmp_path: Path) -> None:
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


def test_the_number_of_comparisons_is_said(tmp_path: Path) -> None:
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


def test_the_runs_own_target_that_nobody_reached_is_null_and_said(tmp_path: Path) -> None:
    make_run(tmp_path / "a", target=0.99)
    result = result_of(tmp_path)
    assert cells(result, "Until")["allreduce"] == {"mode": "allreduce", "reached by": "0 of 1 seed"}
    assert "No run reached the target 0.99." in printed(result)


# Rows and their names


def labels(path: Path, **options: Any) -> list[str]:
    return [line.label for line in result_of(path, **options).lines]


def test_a_swept_setting_makes_a_row_of_each_value_named_by_it(tmp_path: Path) -> None:
    for place, (lr, seed) in enumerate([(0.5, 0), (1.0, 0), (0.5, 1), (1.0, 1)]):
        config = {"sync": {"name": "DiLoCo", "outer_lr": lr, "outer_momentum": 0.9}, "max_steps": place}
        make_run(tmp_path / str(place), sync="diloco", seed=seed, config=config)
    make_run(tmp_path / "4", config={"optimizer": {"lr": 0.3}})
    assert labels(tmp_path) == ["allreduce", "diloco outer_lr=0.5", "diloco outer_lr=1.0"]
    assert [line.metric.n for line in result_of(tmp_path).lines] == [1, 2, 2]


def test_a_row_is_named_by_as_few_settings_as_tell_it_apart(tmp_path: Path) -> None:
    """The delay goes with the period, and needs no mention; a reducer is always named."""
    grid = [
        (8, 1, "dense", {}),
        (16, 2, "dense", {}),
        (16, 2, "topk", {"ratio": 0.1}),
        (16, 2, "topk", {"ratio": 0.01}),
    ]
    for place, (period, delay, reducer, options) in enumerate(grid):
        config = {"sync": {"period": period, "delay": delay}, "reducer": {"name": reducer.title(), **options}}
        make_run(tmp_path / str(place), sync="streaming_diloco", reducer=reducer, config=config)
    assert labels(tmp_path) == [
        "streaming_diloco dense H=8",
        "streaming_diloco dense H=16",
        "streaming_diloco topk H=16 ratio=0.1",
        "streaming_diloco topk H=16 ratio=0.01",
    ]


def test_rows_come_in_the_order_of_their_runs_those_of_one_mode_side_by_side(tmp_path: Path) -> None:
    for job, (mode, period) in enumerate([("slowmo", 16), ("diloco", 8), ("slowmo", 8), ("diloco", 16)]):
        make_run(tmp_path / str(job), sync=mode, config={"sync": {"period": period}})
    assert labels(tmp_path) == ["slowmo H=16", "slowmo H=8", "diloco H=8", "diloco H=16"]


def test_two_keys_of_one_last_name_are_written_out(tmp_path: Path) -> None:
    for place, (lr, rank) in enumerate([(1, 1), (1, 2), (2, 1)]):
        make_run(tmp_path / str(place), config={"sync": {"x": lr}, "optimizer": {"x": rank}})
    assert labels(tmp_path) == [f"allreduce sync.x={x} optimizer.x={y}" for x, y in [(1, 1), (1, 2), (2, 1)]]


def test_the_same_setting_in_two_sweeps_is_two_rows(tmp_path: Path) -> None:
    """Averaged, a seed would count twice."""
    for sweep, value in (("monday", 0.8), ("tuesday", 0.9)):
        make_sweep(tmp_path / sweep, {"allreduce": (value, value)})
    assert labels(tmp_path) == ["allreduce (monday)", "allreduce (tuesday)"]
    make_run(tmp_path / "monday" / "7", seed=0)
    assert labels(tmp_path) == [
        "allreduce (monday/0)", "allreduce (monday/1)", "allreduce (monday/7)", "allreduce (tuesday/0)",
        "allreduce (tuesday/1)",
    ]  # fmt: skip


def test_without_configs_summaries_tell_rows_apart(tmp_path: Path) -> None:
    for place, period in enumerate((8, 16)):
        (make_run(tmp_path / str(place), sync="local_sgd", period=period) / ".hydra" / "config.yaml").unlink()
    make_run(tmp_path / "2", sync="local_sgd", seed=1, config={"sync": {"period": 16}})
    found = result_of(tmp_path)  # what else the second was run with is not known: the third may be another setting
    assert [(line.row.period, line.metric.n) for line in found.lines] == [("8", 1), ("16", 1), ("16", 1)]
    assert len({line.label for line in found.lines}) == 3


def test_what_changes_no_training_makes_no_row(tmp_path: Path) -> None:
    for seed, root in enumerate(("/data", "/mnt")):
        config = {"data_root": root, "nproc_per_node": seed, "target": seed, "checkpoint_every": seed}
        make_run(tmp_path / str(seed), seed=seed, config=config)
    assert labels(tmp_path) == ["allreduce"]


@pytest.mark.parametrize(
    ("config", "periods", "shown"),
    [
        ({"sync": {"period": 16}}, (16, 16), "16"),
        ({"sync": {"period": 8}}, (8, 12, 20), "8–20"),
        ({"sync": {"node_period": 2, "global_period": 8}}, (), "2, 8"),
        ({"sync": {"period": None}}, (), None),
    ],
)
def test_the_period_is_the_configured_one_or_what_a_cadence_made_of_it(
    tmp_path: Path, config: dict[str, Any], periods: tuple[int, ...], shown: str | None
) -> None:
    make_run(tmp_path / "a", config=config, periods=periods)
    (line,) = result_of(tmp_path).lines
    assert line.row.period == shown
    assert cells(result_of(tmp_path), "Quality")["allreduce"].get("H") == shown


# The baseline


def test_the_baseline_is_allreduce_or_the_first_row_or_what_is_asked_for(tmp_path: Path) -> None:
    make_sweep(tmp_path, {"diloco": (0.8, 0.9), "local_sgd": (0.7, 0.9)})
    assert labels(tmp_path) == ["diloco", "local_sgd"]
    assert labels(tmp_path, baseline="local_sgd") == ["local_sgd", "diloco"]
    make_run(tmp_path / "4", reducer="bf16")
    make_run(tmp_path / "5", reducer="dense")
    assert labels(tmp_path) == ["allreduce dense", "diloco", "local_sgd", "allreduce bf16"]
    text = printed(result_of(tmp_path))
    assert "Several rows are allreduce; the baseline is allreduce dense (--baseline chooses)." in text
    assert labels(tmp_path, baseline="allreduce bf16")[0] == "allreduce bf16"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("gossip", "no row has that name"),
        ("allreduce", "several rows have that name; choose one of 'allreduce bf16', "),
    ],
)
def test_a_baseline_that_is_not_there_is_refused(tmp_path: Path, asked: str, said: str) -> None:
    for place, reducer in enumerate(("bf16", "dense")):
        make_run(tmp_path / str(place), reducer=reducer)
    with pytest.raises(ReportError, match=f"--baseline {asked}: {said}"):
        result_of(tmp_path, baseline=asked)


# The answer


def test_the_answer_names_who_is_as_good_for_less(tmp_path: Path) -> None:
    sent = {"allreduce": 70e6, "local_sgd": 7e6, "diloco": 3e6, "slowmo": 9e6}
    seconds = {"allreduce": 20.0, "local_sgd": 10.0, "diloco": 5.0, "slowmo": 4.0}
    for mode, values in ACCURACY.items():
        for seed, value in enumerate(values):
            make_run(tmp_path / f"{mode}{seed}", sync=mode, seed=seed, test_metric=value, wire_bytes=sent[mode],
                     train_s=seconds[mode])  # fmt: skip
    result = result_of(tmp_path)
    text = printed(result)
    local = next(line for line in result.lines if line.label == "local_sgd").difference
    assert local is not None and local.low is not None and local.high is not None
    assert "Better than allreduce in test accuracy: slowmo (+0.0051 ± 0.0006)." in text
    assert "Worse than allreduce in test accuracy: diloco (−0.0097 ± 0.0014)." in text
    assert "Not shown to differ from allreduce in test accuracy: local_sgd." in text
    # Not diloco, which sends less but is worse; and of slowmo, which is better, no word that it may be worse.
    assert (
        "Of those not shown to be worse, local_sgd sends the fewest bytes (7.00 MB; allreduce 70.0 MB, 10.0 × as much)"
        f", and may be up to {-local.low:.4f} worse than allreduce; "
        "slowmo trains fastest (4.00 s; allreduce 20.0 s, 5.00 × as much)."
    ) in text
    assert f"a difference of up to {max(-local.low, local.high):.4f} would still agree with these runs." in text


def test_one_that_is_cheapest_in_all_is_named_once(tmp_path: Path) -> None:
    for mode, cost in {"allreduce": 1, "diloco": 2}.items():
        for seed in (0, 1):
            make_run(tmp_path / f"{mode}{seed}", sync=mode, seed=seed, wire_bytes=cost * 10**6, train_s=cost)
    assert (
        "Of those not shown to be worse, allreduce sends the fewest bytes (1.00 MB) and trains fastest (1.00 s)."
    ) in printed(result_of(tmp_path))


def test_who_sends_least_is_not_said_when_one_might_send_less(tmp_path: Path) -> None:
    for mode, sent in {"allreduce": 9e6, "local_sgd": 3e6, "diloco": None}.items():
        for seed in (0, 1):
            make_run(tmp_path / f"{mode}{seed}", sync=mode, seed=seed, test_metric=0.9, wire_bytes=sent)
    text = printed(result_of(tmp_path))
    assert "trains fastest" in text
    assert "fewest bytes" not in text


def test_one_row_is_no_comparison(tmp_path: Path) -> None:
    text = printed(result_of(make_sweep(tmp_path, {"allreduce": (0.91, 0.93, 0.92)})))
    assert (
        "allreduce reaches a test accuracy of 0.9200 ± 0.0248 (3 seeds); there is nothing to compare it with." in text
    )


def test_different_machines_are_said(tmp_path: Path) -> None:
    make_run(tmp_path / "a", device="cpu")
    make_run(tmp_path / "b", device="NVIDIA H200", sync="diloco")
    assert "Not all runs had the same device: cpu and NVIDIA H200." in printed(result_of(tmp_path))


# Curves


def test_curves_are_means_over_the_seeds_of_a_step(tmp_path: Path) -> None:
    for seed, (curve, every_s) in enumerate([((0.2, 0.4, 0.6), 0.1), ((0.4, 0.8, 0.8), 0.3)]):
        run = make_run(tmp_path / str(seed), seed=seed, curve=curve, test_metric=curve[-1])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        text = "".join(json.dumps(line | {"train_s": line["step"] * every_s}) + "\n" for line in lines)
        (run / "metrics.jsonl").write_text(text)
    points = result_of(tmp_path).baseline.points
    assert [point.step for point in points] == [10, 20, 30]
    assert [point.train_s for point in points] == pytest.approx([2, 4, 6])
    assert [point.wire_bytes for point in points] == [1e6, 2e6, 3e6]
    assert [point.metric.mean for point in points if point.metric] == pytest.approx([0.3, 0.6, 0.7])
    # 12.7062 · 0.282843 / √2 = 2.54124 at the second point
    assert points[1].metric is not None
    assert points[1].metric.half_width == pytest.approx(2.54124, abs=1e-5)


def test_an_evaluation_that_was_not_finite_is_a_gap(tmp_path: Path) -> None:
    make_run(tmp_path / "a", curve=(0.5, None, 0.9))
    run = make_run(tmp_path / "b", seed=1)
    (run / "metrics.jsonl").write_text(metrics("accuracy", (0.5, 0.7, 0.9)).replace("0.7", "NaN"))
    points = result_of(tmp_path).baseline.points
    assert [point.metric is None for point in points] == [False, True, False]


def test_the_front_is_what_nobody_beats(tmp_path: Path) -> None:
    spots = {"a": (1e6, 0.80), "b": (2e6, 0.90), "c": (2e6, 0.85), "d": (3e6, 0.90), "e": (4e6, 0.95), "f": (4e6, 0.95)}
    for mode, (sent, value) in spots.items():
        make_run(tmp_path / mode, sync=mode, wire_bytes=sent, test_metric=value)
    make_run(tmp_path / "unknown", sync="unknown", wire_bytes=None, test_metric=1.0)
    assert [line.label for line in front(result_of(tmp_path), "wire_bytes")] == ["a", "b", "e", "f"]
    for mode in (*spots, "unknown"):
        summary = tmp_path / mode / "summary.json"
        summary.write_text(summary.read_text().replace('"seed"', '"higher_is_better": false, "seed"'))
    assert [line.label for line in front(result_of(tmp_path), "wire_bytes")] == ["a"]


def test_one_that_went_astray_does_not_press_the_others_flat() -> None:
    good = [0.90, 0.905, 0.91, 0.91, 0.915]
    low, high = metric_limits([*good, 0.1], higher_is_better=True)
    assert 0.89 < low < 0.9 and 0.915 < high < 0.92
    assert metric_limits([*good, 0.85], higher_is_better=True)[0] > 0.89  # the middle third is 0.903 to 0.910
    assert metric_limits([*good, 0.88], higher_is_better=True)[0] < 0.88
    low, high = metric_limits([1 - value for value in [*good, 0.1]], higher_is_better=False)
    assert 0.08 < low < 0.085 and 0.1 < high < 0.11
    assert metric_limits([*good, 1.5], higher_is_better=True)[1] > 1.5  # what is better is always in view
    low, high = metric_limits([0.5], higher_is_better=True)
    assert low < 0.5 < high


# The document


def test_the_document_holds_everything_as_numbers(tmp_path: Path) -> None:
    make_sweep(tmp_path / "good", ACCURACY, target=0.5, device="cpu", config={"optimizer": {"lr": 0.1}})
    bad = make_run(tmp_path / "bad", status={"status": "failed", "reason": "why"}, sync="gossip")
    content = json.loads(report_json(result_of(tmp_path), ["report.json"]))
    assert content.keys() == {
        "generator", "files", "metric", "higher_is_better", "target", "baseline", "confidence", "comparisons", "answer",
        "notes", "shared", "rows", "config_differences", "environment", "failed",
    }  # fmt: skip
    assert (content["metric"], content["baseline"], content["target"]) == ("test_accuracy", "allreduce", 0.5)
    assert (content["higher_is_better"], content["comparisons"], content["confidence"]) == (True, 3, 0.95)
    assert content["failed"] == [{"run": str(bad), "asked": "sync=gossip seed=0", "reason": "failed, reason why"}]
    assert content["environment"] == {"device": {"cpu": [str(job) for job in range(20)]}}
    row = content["rows"][2]
    assert (row["label"], row["mode"], row["reducer"], row["cadence"]) == ("diloco", "diloco", "dense", "fixed")
    assert row["seeds"] == [0, 1, 2, 3, 4]
    assert row["runs"] == [str(tmp_path / "good" / str(10 + seed)) for seed in range(5)]
    values = ACCURACY["diloco"]
    half = 2.7764451 * stdev(values) / 5**0.5
    assert row["metric"] == {
        "mean": pytest.approx(fmean(values)),
        "low": pytest.approx(fmean(values) - half),
        "high": pytest.approx(fmean(values) + half),
        "n": 5,
        "by_seed": {str(seed): value for seed, value in enumerate(values)},
    }
    assert row["verdict"] == "worse"
    assert row["settings"]["optimizer.lr"] == "0.1"
    assert [point["step"] for point in row["curve"]] == [10, 20, 30]
    assert content["rows"][0]["difference"] is None


def test_config_differences_are_those_between_rows(tmp_path: Path) -> None:
    make_run(tmp_path / "a", config={"optimizer": {"lr": 0.1, "momentum": 0.9}})
    make_run(tmp_path / "b", sync="diloco", config={"optimizer": {"lr": 0.2, "momentum": 0.9}, "sync": {"period": 16}})
    content = json.loads(report_json(result_of(tmp_path), []))
    assert content["config_differences"] == {
        "optimizer.lr": {"allreduce": "0.1", "diloco": "0.2"},
        "sync.period": {"diloco": "16"},
    }
