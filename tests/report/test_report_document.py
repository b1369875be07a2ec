"""The report's curves, and report.json."""

import json
from pathlib import Path
from statistics import fmean, stdev

import pytest
from report_cases import ACCURACY, make_run, make_sweep, metrics, result_of

from ddp_agent.report.figures.axes import metric_limits
from ddp_agent.report.figures.pareto import front
from ddp_agent.report.report_json import report_json


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
