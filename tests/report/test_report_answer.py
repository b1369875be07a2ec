"""Rows, the baseline, and the answer of a report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_cases import ACCURACY, cells, make_run, make_sweep, printed, result_of

from ddp_agent.report.page.page import page
from ddp_agent.report.report_json import report_json
from ddp_agent.report.runs.run import ReportError


def labels(path: Path, **options: Any) -> list[str]:
    return [line.label for line in result_of(path, **options).lines]


def test_a_swept_setting_makes_a_row_of_each_value_named_by_it(tmp_path: Path) -> None:
    for index, (lr, seed) in enumerate([(0.5, 0), (1.0, 0), (0.5, 1), (1.0, 1)]):
        config = {"sync": {"name": "DiLoCo", "outer_lr": lr, "outer_momentum": 0.9}, "max_steps": index}
        make_run(tmp_path / str(index), sync="diloco", seed=seed, config=config)
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
    for index, (period, delay, reducer, options) in enumerate(grid):
        config = {"sync": {"period": period, "delay": delay}, "reducer": {"name": reducer.title(), **options}}
        make_run(tmp_path / str(index), sync="streaming_diloco", reducer=reducer, config=config)
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


def test_pieces_of_other_packages_have_labels_of_their_own(tmp_path: Path) -> None:
    """A summary labels a piece without a config file by `module:Name`, as it was chosen."""
    foreign: dict[str, Any] = {"model": "mypkg.nets:Tiny", "sync": "mypkg.sync:Mine"}
    for index, reducer in enumerate(("dense", "mypkg.codecs:Half")):
        config = {"model": {"name": "mypkg.nets:Tiny"}, "reducer": {"name": reducer}, "sync": {"name": foreign["sync"]}}
        make_run(tmp_path / str(index), config=config, reducer=reducer, **foreign)
    result = result_of(tmp_path)
    assert labels(tmp_path) == ["mypkg.sync:Mine dense", "mypkg.sync:Mine mypkg.codecs:Half"]
    document = json.loads(report_json(result, []))
    assert document["shared"]["model"] == "mypkg.nets:Tiny"
    assert [row["reducer"] for row in document["rows"]] == ["dense", "mypkg.codecs:Half"]
    assert "<title>Which way to synchronise mypkg.nets:Tiny on digits?</title>" in page(result, [], [])
    make_run(tmp_path / "mlp", seed=1, sync=foreign["sync"])
    with pytest.raises(ReportError, match="model differs"):
        result_of(tmp_path)


def test_two_keys_of_one_last_name_are_written_out(tmp_path: Path) -> None:
    for index, (lr, rank) in enumerate([(1, 1), (1, 2), (2, 1)]):
        make_run(tmp_path / str(index), config={"sync": {"x": lr}, "optimizer": {"x": rank}})
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
    for index, period in enumerate((8, 16)):
        (make_run(tmp_path / str(index), sync="local_sgd", period=period) / ".hydra" / "config.yaml").unlink()
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
    ("wanted", "message"),
    [
        ("gossip", "no row has that name"),
        ("allreduce", "several rows have that name; choose one of 'allreduce bf16', "),
    ],
)
def test_a_baseline_that_is_not_there_is_refused(tmp_path: Path, wanted: str, message: str) -> None:
    for index, reducer in enumerate(("bf16", "dense")):
        make_run(tmp_path / str(index), reducer=reducer)
    with pytest.raises(ReportError, match=f"--baseline {wanted}: {message}"):
        result_of(tmp_path, baseline=wanted)


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


def test_who_sends_least_is_not_named_when_one_might_send_less(tmp_path: Path) -> None:
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


def test_of_many_rows_the_answer_names_a_few(tmp_path: Path) -> None:
    rows = make_sweep(tmp_path, {"allreduce": (0.91, 0.93), **{f"mode{index}": (0.92, 0.92) for index in range(9)}})
    text = printed(result_of(rows))
    assert (
        "Not shown to differ from allreduce in test accuracy: mode0, mode1, mode2, mode3, mode4, mode5 and 3 more."
        in text
    )


def test_the_share_of_frozen_bytes_is_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", frozen_share=0.0)
    make_run(tmp_path / "b", sync="diloco", frozen_share=0.98)
    assert "frozen parameters have 98% in diloco: they never change" in printed(result_of(tmp_path))
    make_run(tmp_path / "of an older version", seed=1)
    for name in "ab":
        shutil.rmtree(tmp_path / name)
    assert "frozen" not in printed(result_of(tmp_path))


def test_different_machines_are_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", device="cpu")
    make_run(tmp_path / "b", device="NVIDIA H200", sync="diloco")
    assert "Not all runs had the same device: cpu and NVIDIA H200." in printed(result_of(tmp_path))
