"""Downloads, dependencies and documents keep SECURITY.md's rules, too."""

import gc
import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_download_is_named_by_its_sha256() -> None:
    from ddp_agent.data.readers.download import Published

    for file in (ROOT / "ddp_agent" / "data").rglob("*.py"):
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    gc.unfreeze()  # else what was imported at collection is not listed
    published = [found for found in gc.get_objects() if type(found) is Published]
    gc.freeze()
    ours = [one for one in published if not one.url.startswith("file:")]  # other tests make their own
    assert len(ours) >= 9
    for one in ours:
        assert one.url.startswith("https://"), one
        assert re.fullmatch("[0-9a-f]{64}", one.sha256), one


def dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


@pytest.mark.parametrize("dependency", dependencies())
def test_every_dependency_has_a_lower_bound_and_a_locked_version_that_keeps_it(dependency: str) -> None:
    name, least = re.fullmatch(r"([A-Za-z0-9_-]+)>=([\d.]+)(,<[\d.]+)?", dependency).group(1, 2)  # type: ignore[union-attr]
    locked = re.search(rf"^{name}==([\d.]+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M)
    assert locked, f"{name} is not in requirements.lock: its first lines say how it is made again"
    assert [int(part) for part in locked[1].split(".")] >= [int(part) for part in least.split(".")]


def test_the_lock_names_hashes_and_no_place() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[a-z0-9_.-]+==|    --hash=sha256:[0-9a-f]{64}", line) for line in wanted)
    assert not any("://" in line or "--index" in line or "--find-links" in line for line in lines)
    for number, line in enumerate(wanted):
        assert line.startswith("    ") or wanted[number + 1].startswith("    --hash=sha256:"), line


def documents() -> list[Path]:
    folders = [ROOT / name for name in ("docs", "launch", "conf", "ddp_agent")]
    found = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".md", ".sh", ".py", ".yaml")]
    return [*ROOT.glob("*.md"), *found]


def test_tensorboard_stays_on_localhost_wherever_it_is_named() -> None:
    told = {file: file.read_text(encoding="utf-8") for file in documents()}
    commands = [(file, line) for file, text in told.items() for line in text.splitlines() if "tensorboard --" in line]
    assert {ROOT / "README.md", ROOT / "ddp_agent" / "outputs" / "console.py"} <= {file for file, _ in commands}
    assert [command for command in commands if re.search(r"--(bind_all|host)\b", command[1])] == []
    assert "ssh -L 6006:localhost:6006" in told[ROOT / "README.md"]
