"""A file of any bytes and numbers, in the place of a configuration, is composed or refused in words."""

import subprocess
import sys
from pathlib import Path

import pytest
from configs import CONF

from ddp_agent.cli import relaunch
from ddp_agent.cli.composition import Configs, LaunchContext
from ddp_agent.errors import ConfigError
from ddp_agent.training.settings import parse

HEAD = "# @package _global_\n"
DIGITS = "9" * 400
REFUSED = {
    "a number beyond floats": "optimizer: {lr: 1e999}",
    "a number of 400 digits": f"optimizer: {{lr: {DIGITS}}}",
    "an integer of 400 digits": f"seed: {DIGITS}",
    "an integer of 5000 digits": f"seed: {'9' * 5000}",
    "no number": "optimizer: {lr: .nan}",
    "a surrogate": r'run_name: "\ud800"',
    "a zero byte in a path": r'data_root: "a\0b"',
    "a raw zero byte": "run_name: a\0b",
    "a tab": "optimizer:\n\tlr: 0.1",
    "a key twice": "seed: 4\nseed: 5",
    "an open interpolation": "run_name: ${",
    "a tag of Python": "seed: !!python/object/apply:os.abort []",
    "a date that is none": "seed: 2020-99-99",
    "two documents": "seed: 1\n---\nseed: 2",
    "a list": "- 1",
    "a long line": f"run_name: {'x' * 20_000}",
}


def check(context: LaunchContext) -> None:
    parse(context.cfg, choices=context.choices, world_size=context.world_size)


def compose(folder: Path, content: bytes) -> None:
    (folder / "experiment").mkdir()
    (folder / "experiment" / "theirs.yaml").write_bytes(content)
    configs = Configs(folder=CONF, name="config", extra_folder=folder).compose(["+experiment=theirs"])
    configs.checked(check, relaunch._nproc_per_node)


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_run_can_use_is_refused_in_words(case: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(tmp_path, (HEAD + REFUSED[case]).encode())
    assert refused.value.problems
    assert all(": " in problem and problem.strip() for problem in refused.value.problems)


def test_bytes_that_are_no_utf8_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"theirs\.yaml: 'utf-8' codec can't decode byte 0xff"):
        compose(tmp_path, HEAD.encode() + b"run_name: \xff")


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
