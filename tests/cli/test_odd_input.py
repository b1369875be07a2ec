"""Odd numbers, texts and files in a configuration: each is one line, and nothing waits or ends in a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_agent.cli.composition import Configs, LaunchContext
from ddp_agent.errors import ConfigError
from ddp_agent.training.settings import parse

CONF = Path(__file__).parents[2] / "conf"
HEAD = "# @package _global_\n"
NINES = "9" * 400


def problems(*overrides: str, folder: Path | None = None) -> list[str]:
    def check(context: LaunchContext) -> None:
        parse(context.cfg, choices=context.choices, world_size=context.world_size)

    with pytest.raises(ConfigError) as error:
        Configs(folder=CONF, name="config", extra_folder=folder).compose(overrides).checked(check, lambda cfg: 2)
    assert all(line.isprintable() and len(line) < 1000 for line in error.value.problems)
    return error.value.problems


TYPED = {
    "optimizer.lr=1e999": "optimizer.lr: found inf, expected a finite number",
    f"optimizer.lr={NINES}": "optimizer.lr: found",
    "optimizer.lr=nan": "optimizer.lr: found nan, expected a finite number",
    f"seed={NINES}": "of at most 64 bits",
    "model.hidden=[1e999]": "model.hidden: found [inf], expected a list, each an integer",
    "max_steps=1e3": "max_steps: found 1000.0, expected an integer",
    "run_name=" + os.fsdecode(b"a\xff"): "run_name=a",
    "run_name='a\0b'": "run_name",
    "run_name=" + "a" * 900: "run_name: found",
    "run_name=" + "a" * 50_000: "found 50,009 characters, expected at most 10,000",
    "seed=2026-12-01": "seed: found '2026-12-01', expected an integer",
}


@pytest.mark.parametrize("override", TYPED, ids=lambda text: ascii(text)[:40])
def test_a_value_that_nothing_can_hold_is_one_line(override: str) -> None:
    (line,) = problems(override)
    assert TYPED[override] in line


WRITTEN: dict[str, tuple[bytes, str]] = {
    "beyond floats": (b"optimizer: {lr: 1e999}", "optimizer.lr: found inf, expected a finite number"),
    "no number": (b"optimizer: {lr: .nan}", "optimizer.lr: found nan"),
    "4,300 digits": (b"seed: " + b"9" * 5000, "odd.yaml: found a number of more than 4,300 digits"),
    "a zero byte in a path": (rb'data_root: "a\0b"', r"data_root: found 'a\x00b', expected a path"),
    "a zero byte": (b"seed: 3\0", "+experiment=odd: "),
    "half a character": (rb'run_name: "\ud800"', r"run_name: found '\ud800', expected a string"),
    "another encoding": (b'run_name: "caf\xe9"', "odd.yaml: found no UTF-8 at byte 34"),
    "a key twice": (b"seed: 3\nseed: 4", "found duplicate key seed"),
    "tabs": (b"model:\n\thidden: [3]", "+experiment=odd: "),
    "an open interpolation": (b"run_name: ${", "+experiment=odd: "),
    "a tag of Python": (b"seed: !!python/object/apply:os.abort []", "could not determine a constructor"),
    "a date that is none": (b"seed: 2020-99-99", "seed: found '2020-99-99', expected an integer"),
    "two documents": (b"seed: 1\n---\nseed: 2", "expected a single document"),
    "a list": (b"- 1", "found a list, expected keys with values"),
    "a long line": (b"run_name: " + b"x" * 20_000, "run_name: found 'xxx"),
    "deep": (b"x: " + b"[" * 3000 + b"]" * 3000, "nested"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_with_odd_content_is_one_line(name: str, tmp_path: Path) -> None:
    content, expected = WRITTEN[name]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "odd.yaml").write_bytes(HEAD.encode() + content)
    (line,) = problems("+experiment=odd", folder=tmp_path)
    assert expected in line


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_named(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "odd.yaml"
    file.write_text(f"{HEAD}seed: 3\n", encoding=encoding)
    assert problems("+experiment=odd", folder=tmp_path)[0].startswith(f"{file}: begins with a byte order mark")
    file.write_text(f"{HEAD}seed: 3\n", encoding="utf-8")
    assert problems("+experiment=odd", "max_steps=0", folder=tmp_path) == [
        "max_steps: found 0, expected an integer >= 1 or null"
    ]


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a folder"])
def test_a_file_that_is_none_is_neither_opened_nor_waited_for(kind: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "odd.yaml"
    if kind == "a FIFO":
        os.mkfifo(file)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    assert problems("+experiment=odd", folder=tmp_path)[0].startswith(
        "experiment: found 'odd'" if kind == "a folder" else f"{file}: is {kind}, expected a regular file"
    )


FRESH = """
import sys
from pathlib import Path
from ddp_agent.cli.composition import Configs
from ddp_agent.errors import ConfigError

conf, theirs = map(Path, sys.argv[1:])
for folder, typed in ((theirs, []), (None, [f"hydra.searchpath=[file://{theirs}]"])):
    try:
        Configs(folder=conf, name="config", extra_folder=folder).compose([*typed, "+experiment=theirs"])
    except ConfigError as refused:
        print(*refused.problems)
"""


def test_files_are_looked_at_also_where_hydra_was_not_used_before(tmp_path: Path) -> None:
    """In a new process Hydra imports its module of files twice, and its class is not the one that was imported here."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "theirs.yaml").write_text("- 1\n")
    command = [sys.executable, "-c", FRESH, str(CONF), str(tmp_path)]
    done = subprocess.run(command, cwd=CONF.parent, text=True, capture_output=True, timeout=300, check=True)
    problem = f"{tmp_path / 'experiment' / 'theirs.yaml'}: found a list, expected keys with values"
    assert done.stdout.splitlines() == [problem, problem]
