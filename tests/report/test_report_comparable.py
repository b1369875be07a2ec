"""Runs that may be compared, and refusals that name the runs which may not."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_cases import WITHOUT_DRAWING, cells, make_run, make_sweep, metrics, printed, refusal, result_of

from ddp_agent.report.__main__ import main
from ddp_agent.report.comparison.comparability import OF_A_SEED, OF_ALL
from ddp_agent.report.runs.run import find_runs


@pytest.mark.parametrize("key", OF_A_SEED)
def test_runs_of_one_seed_that_began_differently_are_refused(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make_run(tmp_path / "a", sync="allreduce")
    changes: dict[str, Any] = {key: "f" * 64}
    b = make_run(tmp_path / "b", sync="diloco", **changes)
    message = refusal(tmp_path, capsys=capsys)
    assert f"{key} differs, so these runs of seed 0 cannot be compared" in message
    assert f"ffffffffffff  {b}" in message
    assert str(a) in message
    assert message.count(" differs, so these runs") == 1


def test_slicings_are_compared_and_the_shards_of_each_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sliced(name: str, order: str, sync: str = "allreduce", **keys: Any) -> Path:
        changes: dict[str, Any] = {"slicing": name, "order_sha256": order}
        return make_run(tmp_path / f"{len(list(tmp_path.iterdir()))}", sync=sync, config={"slicing": keys}, **changes)

    sliced("iid", "a")
    sliced("iid", "a", "diloco", tasks="partition")
    sliced("dirichlet", "b", alpha=0.1)
    sliced("dirichlet", "c", alpha=1.0)
    labels = {line.label for line in result_of(tmp_path).lines}
    assert labels == {"allreduce iid", "allreduce dirichlet alpha=0.1", "allreduce dirichlet alpha=1.0", "diloco"}
    assert "Samples were dealt to ranks in 3 ways" in printed(result_of(tmp_path))
    other = sliced("dirichlet", "d" * 64, "diloco", alpha=0.1, tasks="partition")
    message = refusal(tmp_path, capsys=capsys)
    assert "order_sha256 differs, so these runs of seed 0 cannot be compared" in message
    assert f"dddddddddddd  {other}" in message and str(tmp_path / "0") not in message


def test_slicings_begin_with_the_same_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", slicing="iid")
    make_run(tmp_path / "b", slicing="dirichlet", init_sha256="other", order_sha256="other")
    message = refusal(tmp_path, capsys=capsys)
    assert "init_sha256 differs" in message and "order_sha256" not in message


def test_runs_of_another_order_that_do_not_say_how_they_were_sliced_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", slicing="iid")
    make_run(tmp_path / "b", sync="diloco", order_sha256="other")
    assert "order_sha256 differs" in refusal(tmp_path, capsys=capsys)


@pytest.mark.parametrize(
    ("key", "value"),
    [("data_sha256", "other"), ("world_size", 4), ("samples", 480), ("metric_name", "recall"), ("model", "cnn")],
)
def test_runs_of_any_seed_must_agree_in_data_ranks_and_budget(
    tmp_path: Path, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make_run(tmp_path / "a", seed=0)
    b = make_run(tmp_path / "b", **{"seed": 1, key: value})
    message = refusal(tmp_path, capsys=capsys)
    assert f"{key} differs, so these runs cannot be compared" in message
    assert f"{value}" in message and str(a) in message and str(b) in message
    assert message.count(" differs, so these runs") == 1


def test_a_refusal_names_the_job_and_not_all_of_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(9):
        run = make_run(tmp_path / f"a{seed}", seed=seed)
        (run / ".hydra" / "overrides.yaml").write_text(f"[sync=allreduce, seed={seed}]")
    make_run(tmp_path / "b", seed=9, samples=480)
    message = refusal(tmp_path, capsys=capsys)
    assert f"{tmp_path / 'a0'} (sync=allreduce seed=0), " in message
    assert " and 3 more\n" in message and "seed=8" not in message


def test_evaluation_points_must_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", sync="diloco")
    lines = (b / "metrics.jsonl").read_text().splitlines(keepends=True)
    (b / "metrics.jsonl").write_text("".join(lines[1:]))
    message = refusal(tmp_path, capsys=capsys)
    assert "the schedule of evaluations differs, so these runs cannot be compared" in message
    assert f"20, 30      {b}" in message


@pytest.mark.parametrize("key", [*OF_A_SEED, *OF_ALL])
def test_what_is_not_recorded_is_not_taken_to_agree(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    missing: dict[str, Any] = {key: None}
    for index, seed in enumerate((0, 1, 1)):
        make_run(tmp_path / str(index), seed=seed, sync=f"mode{index}", **(missing if seed == 1 else {}))
    if key == "metric_name":  # without it there is nothing to tabulate: such runs are named one by one
        assert [found.problem is None for found in find_runs([tmp_path])] == [True, False, False]
        return
    message = refusal(tmp_path, capsys=capsys)
    assert key in message and "not recorded" in message


def test_the_same_metric_in_two_directions_is_two_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", metric_name="score", higher_is_better=True)
    make_run(tmp_path / "b", metric_name="score", higher_is_better=False, sync="diloco")
    assert "the direction of the metric differs" in refusal(tmp_path, capsys=capsys)


@pytest.mark.parametrize(
    ("name", "recorded", "higher"),
    [
        ("accuracy", None, True),
        ("rmse", None, False),
        ("nats_per_character", None, False),
        ("closeness", None, True),  # no word of it is "loss"
        ("loss", True, True),
        ("accuracy", False, False),
    ],
)
def test_direction_is_what_the_run_says_or_else_the_name(
    tmp_path: Path, name: str, recorded: bool | None, higher: bool
) -> None:
    make_run(tmp_path / "a", metric_name=name, higher_is_better=recorded)
    assert result_of(tmp_path).higher_is_better is higher


def test_a_refusal_names_the_config_keys_that_divide_the_runs_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        for hidden, period in ((32, 8), (32, 16), (64, 8)):
            config = {"model": {"hidden": hidden}, "optimizer": {"lr": 0.1 + seed}, "sync": {"period": period}}
            name = f"{hidden}-{period}-{seed}"
            make_run(tmp_path / name, seed=seed, config=config, init_sha256=f"{hidden}")
    message = refusal(tmp_path, capsys=capsys)
    assert message.count("and with it model.hidden\n") == 2
    assert "optimizer.lr" not in message and "sync.period" not in message
    assert "report each of them by itself" in message


def test_different_seeds_may_start_differently(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1)
    assert result_of(tmp_path).baseline.metric.n == 2


def test_a_failed_run_does_not_spoil_the_comparison_of_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", status={"status": "failed"}, data_sha256="other")
    assert result_of(tmp_path).baseline.metric.n == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"status": "failed", "reason": "nan\nat 7", "rank": 1, "step": 7}, "failed, rank 1, step 7, reason nan at 7"),
        ({"status": "running"}, "died, reason its process is gone; last sign of life"),
        ({"status": "preempted", "step": 5}, "preempted, step 5"),
        ({"status": "finished"}, "finished, but its summary.json is damaged or lacks test_metric"),
    ],
)  # fmt: skip
@WITHOUT_DRAWING
def test_runs_that_did_not_finish_are_named_with_the_reason(
    tmp_path: Path, status: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad", status=status, sync="diloco", curve=(0.1, 0.2, None), test_metric=None)
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if line.startswith("not in the tables: ")]
    assert line.startswith(f"not in the tables: {bad}: {message}") and line.endswith(" (sync=diloco seed=0)")
    assert "1 run did not finish or cannot be read" in " ".join(output.split())
    assert "0.9000" in output


@pytest.mark.parametrize("damage", ['{"status": "fin', "[]", "", "\x00\xff", "[" * 100_000, '{"seed": "0"}'])
def test_a_damaged_run_is_named_and_breaks_nothing(tmp_path: Path, damage: str) -> None:
    make_run(tmp_path / "good")
    files = ("summary.json", "status.json", "metrics.jsonl", ".hydra/config.yaml")
    for index, name in enumerate(files):
        (make_run(tmp_path / str(index)) / name).write_text(damage)
    (tmp_path / "1" / "summary.json").unlink()
    problems = {found.name: found.problem for found in find_runs([tmp_path])}
    assert problems == {
        "0": "finished, but its summary.json is damaged or lacks sync, metric_name, seed, steps, test_metric",
        "1": "no readable status",
        "2": "finished, but its metrics.jsonl is damaged or lacks the evaluation at step 30",
        "3": None,
        "good": None,
    }
    assert result_of(tmp_path).failed


@pytest.mark.parametrize(
    "value", ["0.9", True, None, [0.9], float("nan"), float("inf"), 10**400, {"a": 1}], ids=lambda value: str(value)[:9]
)
def test_a_value_that_is_no_number_is_none(tmp_path: Path, value: Any) -> None:
    make_run(tmp_path / "good")
    make_run(tmp_path / "odd", sync="diloco", train_s=value, consensus_distance=value)
    assert cells(result_of(tmp_path), "Cost")["diloco"]["training s"] == "–"
    (make_run(tmp_path / "worse") / "summary.json").write_text(json.dumps({"status": "finished", "test_metric": value}))
    assert [found.name for found in result_of(tmp_path).failed] == ["worse"]


def test_half_a_line_of_metrics_costs_that_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "test_accur')
    result = result_of(tmp_path)
    assert [point.step for point in result.baseline.points] == [10, 20, 30]
    assert "Damaged lines of metrics.jsonl were passed over in a." in printed(result)


def test_a_run_killed_before_its_last_evaluation_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    text = metrics("accuracy", (0.5, 0.7, 0.9))
    (run / "metrics.jsonl").write_text(text[:-20])
    (problem,) = [found.problem for found in find_runs([tmp_path])]
    assert problem == "finished, but its metrics.jsonl is damaged or lacks the evaluation at step 30"


def test_aliases_in_a_config_are_not_followed(tmp_path: Path) -> None:
    """Nine lines of them could stand for a thousand million keys."""
    run = make_run(tmp_path / "a")
    names = "abcdefghi"
    lines = ["a: &a {x: 1}"] + [
        f"{name}: &{name} {{{', '.join(f'{k}: *{before}' for k in range(9))}}}" for before, name in pairwise(names)
    ]
    (run / ".hydra" / "config.yaml").write_text("\n".join(lines))
    assert "Known by their summaries alone, without .hydra/config.yaml: a." in printed(result_of(tmp_path))


def test_bad_directories_are_noted_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, message in ((tmp_path / "none", "no such directory"), (tmp_path, "no runs in it")):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{path}: {message}")
        assert error.count("\n") == 1


def test_failed_runs_alone_are_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", status={"status": "failed", "reason": "why"})
    assert "no finished run" in refusal(tmp_path, capsys=capsys)


def test_a_target_that_nobody_reached_is_refused_when_it_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, {"allreduce": (0.90, 0.91), "diloco": (0.88, 0.93)})
    message = refusal(tmp_path, "--target", "0.95", capsys=capsys)
    assert message == "--target 0.95: no run reached it; the best evaluation is 0.93 (run 3)\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DIR", "--target", "high"], "--target: found 'high', expected a number"),
        (["DIR", "--target", "nan"], "--target: found 'nan', expected a number"),
        (["DIR", "--basline", "x"], "unrecognized arguments: --basline x"),
        ([], "required: DIR"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
