"""Sizes that keep the tree readable: of the package's root, of files, functions and classes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ddp_agent"
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), ROOT / "train.py"])

LINES_OF_A_FILE = 300
LINES_OF_A_FUNCTION = 50
PUBLIC_MEMBERS = 15


def too_large(source: str) -> Iterator[str]:
    if (lines := source.count("\n")) > LINES_OF_A_FILE:
        yield f"{lines} lines, expected at most {LINES_OF_A_FILE}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno
            if (lines := node.end_lineno - node.lineno + 1) > LINES_OF_A_FUNCTION:
                yield f"{node.name}: {lines} lines, expected at most {LINES_OF_A_FUNCTION}"
        if isinstance(node, ast.ClassDef) and len(found := public_members(node)) > PUBLIC_MEMBERS:
            yield f"{node.name}: {len(found)} public members, expected at most {PUBLIC_MEMBERS}: {sorted(found)}"


def public_members(node: ast.ClassDef) -> set[str]:
    """Methods and fields of a class, those that methods assign to `self` included."""
    names = {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
    for part in ast.walk(node):
        targets = (
            part.targets if isinstance(part, ast.Assign) else [part.target] if isinstance(part, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and part in node.body:
                names.add(target.id)
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                names.add(target.attr)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_function_or_class_is_too_large(file: Path) -> None:
    assert list(too_large(file.read_text(encoding="utf-8"))) == []


def test_the_root_of_the_package_shows_the_architecture() -> None:
    entries = [entry for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]
    assert sum(entry.is_dir() for entry in entries) <= 15
    assert sum(entry.is_file() for entry in entries) <= 6


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("\n" * 301, "301 lines"),
        ("def f():\n" + "    a = 1\n" * 50, "f: 51 lines"),
        ("class A:\n" + "".join(f"    a{i}: int\n" for i in range(16)), "A: 16 public members"),
        ("class A:\n" + "".join(f"    def a{i}(self): ...\n" for i in range(16)), "A: 16 public members"),
        (
            "class A:\n    def __init__(self):\n" + "".join(f"        self.a{i} = 1\n" for i in range(16)),
            "A: 16 public",
        ),
    ],
)
def test_each_limit_is_seen(source: str, found: str) -> None:
    (message,) = too_large(source)
    assert message.startswith(found)


def test_what_is_just_small_enough_passes() -> None:
    private = "".join(f"    _a{i} = 1\n" for i in range(9)) + "    def f(self):\n        self._b = other.c = 1\n"
    members = "".join(f"    a{i}: int\n" for i in range(14))
    function = "def f():\n" + "    a = 1\n" * 49
    assert list(too_large(f"class A:\n{members}{private}\n\n{function}")) == []
