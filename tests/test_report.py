"""The report: right numbers, fair comparisons only, and no run dropped without a word."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from ddp_agent.report.__main__ import main, report
from ddp_agent.report.figure import draw
from ddp_agent.report.runs import HASHES, find_runs, rows
from ddp_agent.report.table import comparison


def make_run(path: Path, *, status: dict[str, Any] | None = None, **changes: Any) -> Path:
    summary = {
        "status": "finished", "dataset": "digits", "model": "mlp", "world_size": 2, "sync": "allreduce",
        "reducer": "dense", "seed": 0, "metric_name": "accuracy", "test_metric": 0.9, "train_s": 2.0,
        "payload_bytes": 4_000_000, "syncs": 30, **changes,
    }  # fmt: skip
    seed = summary["seed"]
    summary = {"init_sha256": f"init{seed}", "data_sha256": "data", "order_sha256": f"order{seed}"} | summary
    path.mkdir(parents=True)
    (path / "status.json").write_text(json.dumps(status or {"status": "finished"}))
    (path / "summary.json").write_text(json.dumps(summary))
    lines = [
        {
            "step": s,
            "train_loss": 1 / s,
            "test_accuracy": s / 100,
            "train_s": s / 10,
            "payload_bytes": 1_000_000 * s,
        }
        for s in (10, 20, 30)
    ]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 31, "train_loss": 0.1}])
    (path / "metrics.jsonl").write_text(text + '{"step": 40, "test_accur')
    return path


def table_of(*directories: Path) -> list[dict[str, str]]:
    table = comparison(rows(run for run in find_runs(directories) if not run.problem))
    columns = {str(column.header): list(map(str, column.cells)) for column in table.columns}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def printed(*directories: Path) -> str:
    file = io.StringIO()
    report(directories, Console(file=file, width=140))
    return file.getvalue()


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    for name in ("hidden=[a,b]", "hidden=[c,d]"):
        make_run(tmp_path / name, model="[mlp]")
    output = printed(tmp_path)
    for expected in ("hidden=[a,b]", "hidden=[c,d]", "model [mlp]"):
        assert expected in output


def test_a_row_is_the_mean_over_seeds_with_the_sample_standard_deviation(tmp_path: Path) -> None:
    for seed, (accuracy, train_s) in enumerate([(0.90, 1.0), (0.92, 2.0), (0.97, 6.0)]):
        make_run(tmp_path / f"a{seed}", seed=seed, test_metric=accuracy, train_s=train_s)
    make_run(tmp_path / "b", sync="diloco", reducer="bf16", period=16, test_metric=0.5, payload_bytes=None)
    assert table_of(tmp_path) == [
        # mean 2.79 / 3; squared distances 0.0009 + 0.0001 + 0.0016 = 0.0026; sqrt(0.0026 / 2) = 0.03606
        {"mode": "allreduce", "reducer": "dense", "period": "–", "seeds": "0, 1, 2", "train_s": "3.00",
         "test_accuracy": "0.9300 ± 0.0361 (n=3)", "payload MB": "4.00", "syncs": "30"},
        {"mode": "diloco", "reducer": "bf16", "period": "16", "seeds": "0", "train_s": "2.00",
         "test_accuracy": "0.5000 (n=1)", "payload MB": "–", "syncs": "30"},
    ]  # fmt: skip


def test_what_differs_between_rows_is_a_column_and_what_is_shared_the_title(tmp_path: Path) -> None:
    make_run(tmp_path / "a", world_size=2)
    make_run(tmp_path / "b", world_size=4)
    assert [row["ranks"] for row in table_of(tmp_path)] == ["2", "4"]
    assert "dataset digits, model mlp" in printed(tmp_path)


def test_one_seed_run_twice_is_not_averaged(tmp_path: Path) -> None:
    for name, accuracy in (("lr=0.1", 0.9), ("lr=0.2", 0.8)):
        make_run(tmp_path / name, test_metric=accuracy)
    assert [(row["run"], row["test_accuracy"]) for row in table_of(tmp_path)] == [
        ("lr=0.1", "0.9000 (n=1)"),
        ("lr=0.2", "0.8000 (n=1)"),
    ]


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "multirun" / "today" / "0")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "status.json").write_text("{}")
    assert [found.path for found in find_runs([tmp_path, run, run.parent])] == [run]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            {"status": "failed", "reason": "loss is nan", "rank": 1, "step": 7},
            "failed, rank 1, step 7, reason loss is nan",
        ),
        ({"status": "running"}, "running"),
        ({"status": "preempted", "step": 5}, "preempted, step 5"),
        ({}, "finished"),
    ],
)
def test_runs_that_cannot_be_tabulated_are_named_with_the_reason(
    tmp_path: Path, status: dict[str, Any], said: str
) -> None:
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad", status=status, test_metric=None)
    output = printed(tmp_path)
    assert f"not in the table: {bad}: {said}" in output
    assert "0.9000 (n=1)" in output


@pytest.mark.parametrize("damage", ['{"status": "fin', "[]", "", "\x00\xff"])
def test_a_damaged_run_is_named_and_breaks_nothing(tmp_path: Path, damage: str) -> None:
    make_run(tmp_path / "good")
    summary, status = make_run(tmp_path / "summary"), make_run(tmp_path / "status")
    (summary / "summary.json").write_text(damage)
    (status / "status.json").write_text(damage)
    (status / "summary.json").unlink()
    output = printed(tmp_path)
    assert f"{summary}: finished, but its summary.json is damaged or lacks sync, seed" in output
    assert f"{status}: no readable status" in output


@pytest.mark.parametrize("key", HASHES)
def test_runs_of_one_seed_that_started_differently_are_refused(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make_run(tmp_path / "a", sync="allreduce")
    changes: dict[str, Any] = {key: "another" * 10}
    b = make_run(tmp_path / "b", sync="diloco", **changes)
    assert main([str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert f"{key} differs, so these runs of seed 0 cannot be compared" in output.err
    assert str(a) in output.err
    assert str(b) in output.err
    assert all(other not in output.err for other in HASHES if other != key)
    assert not (tmp_path / "report").exists()
    assert "mode" not in output.out


def test_different_seeds_may_start_differently(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1)
    assert "(n=2)" in printed(tmp_path)


def test_a_failed_run_does_not_spoil_the_comparison_of_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", status={"status": "failed"}, data_sha256="other")
    assert "(n=1)" in printed(tmp_path)


def test_metrics_of_two_kinds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1, metric_name="perplexity")
    assert main([str(tmp_path)]) == 2
    assert "metric_name differs" in capsys.readouterr().err


def test_bad_directories_are_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, said in ((tmp_path / "none", "no such directory"), (tmp_path, "no runs in it")):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{path}: {said}")
        assert error.count("\n") == 1


def test_failed_runs_alone_are_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", status={"status": "failed", "reason": "why"})
    assert main([str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert "why" in output.out
    assert "no finished run" in output.err


def test_a_directory_that_cannot_be_written_still_gives_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "report").write_text("a file in the way")
    assert main([str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert "0.9000" in output.out
    assert "cannot be written" in output.err


def test_curves_hold_every_evaluation_on_three_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"a{seed}", seed=seed)
    make_run(tmp_path / "b", sync="diloco", period=16)
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    draw(rows(find_runs([tmp_path])), tmp_path / "curves.png")
    (figure,) = saved
    xs = [[10, 20, 30], [1, 2, 3], [10, 20, 30]]
    for panel, x in zip(figure.axes, xs, strict=True):
        lines = panel.get_lines()
        assert len(lines) == 3
        for line in lines:
            assert [line.get_xdata(), line.get_ydata()] == [pytest.approx(x), pytest.approx([0.1, 0.2, 0.3])]
        assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["allreduce (dense)", "diloco (dense, period 16)"]


def test_the_figure_lies_in_the_first_directory(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)
    assert f"curves: {a / 'report' / 'curves.png'}" in printed(a, b)
    assert (a / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (b / "report").exists()
    assert "(n=2)" in printed(a, b)  # and the report it left is not taken for a run


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    code = (
        "import sys; from ddp_agent.report.__main__ import main; code = main(sys.argv[1:])\n"
        "print([name for name in ('torch', 'hydra', 'yaml') if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"
