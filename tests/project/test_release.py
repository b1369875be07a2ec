"""The habits of a release: one version, a changelog, and hooks that run the steps of CI."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from ddp_agent import __version__

ROOT = Path(__file__).parents[2]
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_version_is_the_changelogs_newest_and_the_citations() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([^\]]+)\]", changelog, re.M)[0] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    assert 'path = "ddp_agent/__init__.py"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_hooks_run_what_ci_runs() -> None:
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert local["repo"] == "local"
    commands = {hook["entry"] for hook in local["hooks"]}
    assert commands == {line for line in CI.splitlines() if re.match(r"(ruff|mypy)\b", line)}


def test_pytest_as_a_command_tests_the_tree_that_one_stands_in(tmp_path: Path) -> None:
    """Here a tree whose package tells its own name, in an environment where another one may be installed."""
    (tmp_path / "ddp_agent").mkdir()
    (tmp_path / "ddp_agent" / "__init__.py").write_text("here = True\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("import ddp_agent\ndef test_it(): assert ddp_agent.here\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = Path(sys.executable).with_name("pytest")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [command, "-q", "-n", "0", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
