"""Refusals of the cost model: in clear words, with exit code 2, and without touching a file."""

import json
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest
from planned_runs import World, sweep, write

from ddp_agent.plan import arguments
from ddp_agent.plan.__main__ import main

WORLD = World()


@pytest.mark.parametrize(
    ("text", "bits"),
    [("100mbit", 1e8), ("1gbit", 1e9), ("1.5Gbit/s", 1.5e9), ("64kbit", 64e3), ("800 bit", 800), ("1e2mbit", 1e8)],
)
def test_rates(text: str, bits: float) -> None:
    assert arguments.rate(text) == bits


@pytest.mark.parametrize(("text", "seconds"), [("20ms", 0.02), ("50us", 5e-5), ("50µs", 5e-5), ("1.5s", 1.5), ("0", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert arguments.duration(text) == pytest.approx(seconds)


def test_numbers_of_ranks_are_sorted_and_each_once() -> None:
    assert arguments.counts("64,4, 4") == [4, 64]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("rate", text) for text in ("fast", "100", "100mbps", "0mbit", "infmbit", "1e400mbit", "")],
        *[("duration", text) for text in ("20", "20 minutes", "ms", "nan", "1.2.3ms", "5MS")],
        *[("counts", text) for text in ("0", "2,", "two", "4;8", "2.5", "9999999999", "")],
        *[("count", text) for text in ("2,4", "0")],
        *[("finite", text) for text in ("nan", "inf", "much")],
        *[("loss", text) for text in ("0.5%", "nan")],
    ],
)
def test_words_that_mean_nothing(option: str, value: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^found .* expected "):
        getattr(arguments, option)(value)


def refused(capsys: pytest.CaptureFixture[str], *typed: str | Path) -> str:
    """Either of argparse's exits or ours."""
    try:
        code = main([*map(str, typed)])
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    assert code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and not captured.out
    return captured.err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--rate", "fast"], ["--rate", "'fast'", "100mbit"]),
        (["--latency", "20"], ["--latency", "'20'", "20ms"]),
        (["--ranks", "4,x"], ["--ranks", "'4,x'", "4,64,1024"]),
        (["--loss=-1"], ["--loss", "'-1'", ">= 0"]),
        (["--ranks-per-node", "8"], ["--ranks-per-node", "--node-rate", "both"]),
        (["--ranks", "12", "--ranks-per-node", "8", "--node-rate", "1gbit"], ["--ranks", "12", "multiple", "8"]),
        (["--baseline", "ddp"], ["--baseline", "'ddp'", "compressed", "local_sgd H=8"]),
        (["--json", "/nowhere/plan.json"], ["--json", "'/nowhere/plan.json'", "exists"]),
        (["--compute", "{runs}/1", "--ranks", "2"], ["--compute", "/1", "sync=allreduce", "sync=independent"]),
        (["--compute", "{runs}/0", "--ranks", "4"], ["--compute", "2 ranks", "4"]),
        (["--holdout", "{runs}"], ["--holdout", "fit"]),
        (["{runs}/nothing"], ["no such directory"]),
    ],
)
def test_what_is_asked_for_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: list[str], words: list[str]
) -> None:
    runs = sweep(tmp_path / "runs", WORLD, ["independent", "allreduce", "compressed", "local_sgd H=8"])
    error = refused(capsys, runs, *(word.format(runs=runs) for word in typed))
    assert all(word in error for word in words), error


def test_a_directory_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path}: no runs" in refused(capsys, tmp_path)


def test_only_broken_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write(tmp_path / "a", WORLD, "compressed") / "status.json").write_text('{"status": "running"}')
    assert f"{tmp_path / 'a'}: died" in refused(capsys, tmp_path)


@pytest.mark.parametrize("key", ["dataset", "model", "data_sha256", "params", "metric_name"])
def test_runs_of_different_things(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    write(tmp_path / "a", WORLD, "compressed")
    changed: dict[str, Any] = {key: 7 if key == "params" else "other"}
    other = write(tmp_path / "b", WORLD, "allreduce", **changed)
    if key == "metric_name":
        metrics = (other / "metrics.jsonl").read_text()
        (other / "metrics.jsonl").write_text(metrics.replace("test_accuracy", "test_other"))
    error = refused(capsys, tmp_path)
    assert error.startswith(f"{key} differs") and str(tmp_path / "a") in error and str(tmp_path / "b") in error


@pytest.mark.parametrize(("labels", "ranks"), [(["independent"], 2), (["independent", "compressed"], 1)])
def test_nothing_was_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[str], ranks: int) -> None:
    error = refused(capsys, sweep(tmp_path, WORLD, labels, ranks))
    assert "nothing to fit" in error and f"independent on {ranks}" in error


def test_bytes_that_moved_in_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a", WORLD, "compressed")
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | {"exposed_comm_s": 0.0, "straggler_wait_s": 0.0}))
    assert "nothing to fit" in refused(capsys, tmp_path)


def test_known_and_unknown_links_in_one_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path / "known", WORLD, ["compressed"])
    sweep(tmp_path / "unknown", World(rate=None), ["local_sgd H=8"])
    error = refused(capsys, tmp_path)
    assert "link_rate_bits_per_s" in error and str(tmp_path / "unknown" / "0") in error


def test_several_links_and_none_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path / "fast", WORLD, ["compressed"])
    sweep(tmp_path / "slow", World(rate=1e8), ["compressed"])
    error = refused(capsys, tmp_path)
    assert "--rate" in error and "1 Gbit/s" in error and "100 Mbit/s" in error


def test_held_out_runs_that_do_not_say_their_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = sweep(tmp_path / "runs", WORLD, ["compressed", "local_sgd H=8"])
    held = write(tmp_path / "held", World(rate=None), "compressed")
    error = refused(capsys, runs, "--holdout", held)
    assert "--holdout" in error and "--rate" in error
    assert main([str(runs), "--holdout", str(held), "--rate", "100mbit"]) == 0


def test_a_file_keeps_what_it_held_when_something_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = sweep(tmp_path / "runs", WORLD, ["compressed"])
    (tmp_path / "plan.json").write_text("mine")
    refused(capsys, runs, "--baseline", "nobody", "--json", tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_text() == "mine"
