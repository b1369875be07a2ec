"""Odd numbers, texts and files in a configuration: each is one line, and nothing waits or ends in a traceback."""

import os
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
    "run_name=" + "a" * 5000: "run_name: found",
    "seed=2026-12-01": "seed: found '2026-12-01', expected an integer",
}


@pytest.mark.parametrize("override", TYPED, ids=lambda text: ascii(text)[:40])
def test_a_value_that_nothing_can_hold_is_one_line(override: str) -> None:
    (line,) = problems(override)
    assert TYPED[override] in line


WRITTEN: dict[str, tuple[bytes, str]] = {
    "beyond floats": (b"optimizer: {lr: 1e999}", "optimizer.lr: found inf, expected a finite number"),
    "no number": (b"optimizer: {lr: .nan}", "optimizer.lr: found nan"),
    "4,300 digits": (b"seed: " + b"9" * 5000, "+experiment=odd: found a number of more than 4,300 digits"),
    "a zero byte in a path": (rb'data_root: "a\0b"', r"data_root: found 'a\x00b', expected a path"),
    "a zero byte": (b"seed: 3\0", "+experiment=odd: "),
    "half a character": (rb'run_name: "\ud800"', r"run_name: found '\ud800', expected a string"),
    "another encoding": (b'run_name: "caf\xe9"', "+experiment=odd: found no UTF-8 at byte 34"),
    "a key twice": (b"seed: 3\nseed: 4", "found duplicate key seed"),
    "tabs": (b"model:\n\thidden: [3]", "+experiment=odd: "),
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
