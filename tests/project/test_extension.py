"""The mode of README and the reducer of docs/modes.md: two files each, and the whole suite knows them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = (".git", ".mypy_cache", "outputs", "multirun", "shared", "site")  # of the root
# What is tested of a new piece, and the tests that walk over all of them without naming one.
NAMED = ("half_way", "HalfWay", "rand_k", "RandK")
WALKING = ("documented_pairs", "nobody_imports_in_a_circle", "table_has_no_rows", "both_kinds", "exports")


def added_files(text: str) -> dict[str, str]:
    """Return the files that a page's diff blocks add, by path."""
    files: dict[str, str] = {}
    for block in re.findall(r"```diff\n(.*?)```", text, flags=re.DOTALL):
        for part in re.split(r"^\+\+\+ ", block, flags=re.MULTILINE)[1:]:
            path, _, lines = part.partition("\n")
            files[path] = "".join(f"{line[1:]}\n" for line in lines.splitlines())
    return files


FILES = {
    path: text
    for page in ("README.md", "docs/modes.md")
    for path, text in added_files((ROOT / page).read_text(encoding="utf-8")).items()
}


def test_the_pages_show_a_mode_and_a_reducer() -> None:
    assert sorted(FILES) == [
        *("conf/reducer/rand_k.yaml", "conf/sync/half_way.yaml"),
        *("ddp_agent/reducers/rand_k.py", "ddp_agent/sync/half_way.py"),
    ]
    assert not any((ROOT / path).exists() for path in FILES)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree with the four files, and no other change."""
    copy = tmp_path_factory.mktemp("extended") / "tree"
    caches = shutil.ignore_patterns("__pycache__", ".*_cache")
    shutil.copytree(
        ROOT, copy, ignore=lambda path, names: {*caches(path, names), *(LEFT_OUT if path == str(ROOT) else ())}
    )
    for path, text in FILES.items():
        (copy / path).write_text(text, encoding="utf-8")
    return copy


def run(tree: Path, *command: str) -> str:
    """What `python` with these arguments prints in the copy."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.exhaustive
def test_they_pass_the_suite_without_a_line_anywhere_else(tree: Path) -> None:
    folders = [f"tests/{name}" for name in ("sync", "reducers", "config", "project", "distributed", "plan")]
    selected = " or ".join((*NAMED, *WALKING))
    found = run(tree, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "-k", selected, *folders)
    (passed,) = re.findall(r"(\d+) passed", found)
    assert int(passed) > 150


def test_they_are_as_tidy_as_the_rest(tree: Path) -> None:
    files = [path for path in FILES if path.endswith(".py")]
    run(tree, "-m", "ruff", "check", "-q", *files)
    run(tree, "-m", "ruff", "format", "-q", "--check", *files)


@pytest.mark.exhaustive
def test_they_are_typed(tree: Path) -> None:
    run(tree, "-m", "mypy", *(path for path in FILES if path.endswith(".py")))


def test_the_library_exports_them(tree: Path) -> None:
    code = "from ddp_agent import HalfWay, RandK; from ddp_agent.sync import HalfWay as it; print(it is HalfWay, RandK)"
    assert "True <class 'ddp_agent.reducers.rand_k.RandK'>" in run(tree, "-c", code)
