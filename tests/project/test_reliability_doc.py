"""The table of docs/reliability.md names tests that are there."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 30
    for file, name in named:
        (path,) = TESTS.rglob(file)
        assert f"def {name}" in path.read_text(encoding="utf-8"), (file, name)


def test_every_fault_test_is_named() -> None:
    assert {path.name for path in TESTS.rglob("test_faults_*.py")} <= set(re.findall(r"test_faults_\w+\.py", TEXT))
