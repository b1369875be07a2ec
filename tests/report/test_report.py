"""The report as a command: fair comparisons only, no run dropped without a word, nothing of others overwritten."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rank_pool import RankPool
from report_cases import WITHOUT_DRAWING, cells, make_run, make_sweep, metrics, printed, refusal, result_of
from runs import mode, run

from ddp_agent.report import __main__ as command
from ddp_agent.report.__main__ import main
from ddp_agent.report.runs.run import find_runs

ROOT = Path(__file__).parents[2]


# Names


def test_runs_are_found_at_any_depth_and_once_and_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "b/c"):
        make_run(tmp_path / "sweep" / name)
    (tmp_path / "sweep" / "9" / "checkpoints").mkdir()
    (tmp_path / "sweep" / "9" / "checkpoints" / "status.json").write_text("{}")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "sweep")
    found = find_runs([tmp_path / "sweep", tmp_path / "sweep" / "10", link])
    assert [run.name for run in found] == ["9", "10", "c"]


def test_runs_of_one_name_get_names_that_tell_them_apart(tmp_path: Path) -> None:
    for name in ("monday/0", "tuesday/0", "tuesday/1"):
        make_run(tmp_path / name)
    assert [run.name for run in find_runs([tmp_path])] == ["monday/0", "tuesday/0", "tuesday/1"]


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    for name in ("hidden=[a,b]", "hidden=[c,d]"):
        make_run(tmp_path / name, sync="[bold]mode")
    output = printed(result_of(tmp_path))
    for expected in ("[bold]mode (hidden=[a,b])", "[bold]mode (hidden=[c,d])"):
        assert expected in output


def test_an_unprintable_name_is_made_printable(tmp_path: Path) -> None:
    make_run(tmp_path / "a\x1b[2J\udcff", sync="x\ud800\x07y")
    printed(result_of(tmp_path)).encode()


# What is written


@WITHOUT_DRAWING
def test_the_report_lies_in_the_first_directory_or_where_it_is_asked_for(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)
    assert main([str(a), str(b)]) == 0
    assert main([str(tmp_path), "--output", str(tmp_path / "x" / "y")]) == 0
    assert sorted(path.parent for path in tmp_path.rglob("index.html")) == [a / "report", tmp_path / "x" / "y"]
    assert result_of(a, b).baseline.metric.n == 2  # and a report is not taken for a run


def test_a_report_is_written_again_over_its_own_files_only(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {"local_sgd": (0.8, 0.9)}, periods=(8, 16))
    assert main([str(sweep)]) == 0
    report = sweep / "report"
    written = {path.name for path in report.iterdir()}
    assert written > {"index.html", "report.json", "curves.png", "curves.svg", "pareto.svg", "period.png", "period.svg"}
    assert set(json.loads((report / "report.json").read_text())["files"]) == written
    assert (report / "curves.png").read_bytes().startswith(b"\x89PNG")
    (report / "notes.txt").write_text("mine")
    for seed in (0, 1):
        (sweep / str(seed) / "metrics.jsonl").write_text(metrics("accuracy", (0.5, 0.7, 0.9)))
    assert main([str(sweep)]) == 0
    assert {path.name for path in report.iterdir()} == written - {"period.png", "period.svg"} | {"notes.txt"}
    assert (report / "notes.txt").read_text() == "mine"


@WITHOUT_DRAWING
@pytest.mark.parametrize("index", [None, "{}", '{"generator": "ddp_agent.report", "files": ["../../a", "curves.png"]}'])
def test_files_of_others_are_not_overwritten(
    tmp_path: Path, index: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a")
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("mine")
    if index:
        (site / "report.json").write_text(index)
    assert "not written by a report" in refusal(tmp_path, "--output", str(site), capsys=capsys)
    assert (site / "index.html").read_text() == "mine"


@WITHOUT_DRAWING
def test_an_index_names_files_of_its_own_directory_only(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    report = tmp_path / "report"
    report.mkdir()
    (tmp_path / "mine").write_text("mine")
    (report / "old.png").write_text("old")
    (report / "report.json").write_text('{"generator": "ddp_agent.report", "files": ["../mine", "old.png", 3]}')
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (report / "old.png").exists()


@WITHOUT_DRAWING
@pytest.mark.parametrize("where", ["file/report", "file", "/proc/report", "/dev/null/report"])
def test_a_directory_that_cannot_be_written_still_gives_the_table(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "file").write_text("in the way")
    assert main([str(tmp_path), "--output", str(tmp_path / where)]) == 2
    output = capsys.readouterr()
    assert "0.9000" in output.out
    assert output.err.startswith(f"{tmp_path / where}: cannot be written (")
    assert "--output chooses another directory" in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("before", [[], ["index.html", "report.json"]])
def test_a_disk_that_fills_up_leaves_what_was_there(
    tmp_path: Path, before: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for it: the last file hits it, when the others are written."""
    make_run(tmp_path / "a")
    report = tmp_path / "report"
    if before:
        report.mkdir()
        (report / "index.html").write_text("old")
        (report / "report.json").write_text('{"generator": "ddp_agent.report", "files": ["index.html"]}')
    files = {"report.json": b"{}", "index.html": b"new", "curves.png": bytes(100_000)}
    monkeypatch.setattr(command, "contents", lambda result: files)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        assert main([str(tmp_path)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.startswith(f"{report}: cannot be written (File too large)")
    assert sorted(path.name for path in tmp_path.glob("report/*")) == before
    assert report.exists() == bool(before)
    assert not before or (report / "index.html").read_text() == "old"


def test_a_report_needs_no_torch_and_says_nothing_else(tmp_path: Path) -> None:
    make_run(tmp_path / "a", sync="模式")  # a name that the figures' font lacks
    code = (
        "import sys; from ddp_agent.report.__main__ import main; code = main(sys.argv[1:])\n"
        "print([name for name in ('torch', 'hydra', 'omegaconf') if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"


def test_real_runs_fill_every_table(ranks2: RankPool, tmp_path: Path) -> None:
    """The report reads every key that runs write: no column is empty."""
    for name in ("allreduce", "local_sgd"):
        for seed in (0, 1):
            settings = mode(name, f"seed={seed}", "eval_every=3", "consensus_every=4", "target=0.01")
            ranks2.run(run, *settings, str(tmp_path / f"{name}{seed}"))
    result = result_of(tmp_path)
    assert cells(result, "Quality")["local_sgd"]["H"] == "4"
    shown = [cells(result, title)["local_sgd"] for title in ("Quality", "Until", "Cost")]
    assert [cell for row in shown for cell in row.values() if cell == "–"] == []
    assert [len(row) for row in shown] == [6, 5, 10]
    assert set(result.baseline.parts_s) == {
        "data", "compute", "moving bytes", "waiting for stragglers", "evaluation", "checkpoints"
    }  # fmt: skip
    assert [point.step for point in result.baseline.points] == [3, 6, 8]
