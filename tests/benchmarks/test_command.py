"""The command `python -m benchmarks`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import with_variable

from benchmarks.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        (["sync", "--models", "resnet9"], "classification model of torchvision"),
        (["step", "--ranks", "1"], "an integer >= 2"),
        (["step", "--steps", "many"], "an integer >= 8"),
        (["sync", "--json", "no/such/directory/out.json"], "a directory that exists"),
        (["checkpoint", "--steps", "30"], "a multiple of 50"),
        (["checkpoint", "--directory", "no/such/directory"], "a directory that exists"),
        (["think"], "sync"),
    ],
)
def test_wrong_arguments_are_refused_before_ranks_start(
    typed: list[str], right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(typed)
    assert stop.value.code == 2
    assert right in capsys.readouterr().err


@pytest.mark.exhaustive
def test_the_command_starts_its_ranks_and_leaves_none(tmp_path: Path) -> None:
    file, mark = tmp_path / "out.json", f"{tmp_path.name}-{os.getpid()}"
    typed = ["step", "--steps", "8", "--repeats", "1", "--device", "cpu", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *typed],
        env={**os.environ, "BENCH_TEST_MARK": mark, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bare hand-written loop" in done.stdout and "2 ranks on gloo" in done.stdout
    assert len(json.loads(file.read_text())["rows"]) == 9
    assert sorted(os.listdir(tmp_path)) == ["out.json"]
    assert with_variable("BENCH_TEST_MARK", mark) == []
