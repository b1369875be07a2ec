"""Names that `ddp_agent` itself exports: each one is there, and none is imported before it is asked for."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import ddp_agent
from ddp_agent.config import registry
from ddp_agent.config.registry import classes

ROOT = Path(__file__).parents[2]


def python(source: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", source], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_alone_imports_no_torch_and_an_export_does() -> None:
    shown = python(
        "import sys, ddp_agent; dir(ddp_agent); print('torch' in sys.modules)\n"
        "print(ddp_agent.DiLoCo, ddp_agent.Topology, 'torch' in sys.modules)"
    )
    assert shown.splitlines() == [
        "False",
        "<class 'ddp_agent.sync.diloco.DiLoCo'> <class 'ddp_agent.distributed.topology.Topology'> True",
    ]


def test_every_export_is_what_its_name_says() -> None:
    exported = ddp_agent.__all__
    assert {"Cadence", "Comm", "CommStats", "Reducer", "SyncStrategy", "Topology", "load"} <= set(exported)
    for group in ("sync", "reducer", "cadence"):
        assert set(classes(group)) <= set(exported)
    for name in exported:
        assert getattr(ddp_agent, name).__name__ == name
    assert set(exported) <= set(dir(ddp_agent))


def test_a_star_brings_the_exports_and_nothing_else() -> None:
    names: dict[str, object] = {}
    exec("from ddp_agent import *", names)  # noqa: S102
    assert names.keys() - {"__builtins__"} == set(ddp_agent.__all__)


def test_a_new_choice_is_exported_without_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = ModuleType("ddp_agent.sync.made_up")
    vars(made_up)["MadeUp"] = kind = type("MadeUp", (), {})
    monkeypatch.setitem(sys.modules, made_up.__name__, made_up)
    monkeypatch.setattr(registry, "classes", lambda group: {"MadeUp": made_up.__name__} if group == "sync" else {})
    assert "MadeUp" in ddp_agent.__all__
    assert ddp_agent.MadeUp is kind
    del vars(ddp_agent)["MadeUp"]


def test_type_checkers_see_what_an_interpreter_sees() -> None:
    """A mode that has no line there still works; a line that leads elsewhere would be worse than none."""
    tree = ast.parse((ROOT / "ddp_agent" / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ddp_agent.")
        for alias in node.names
        if alias.asname
    }
    assert len(seen) > 25
    for name, path in seen.items():
        value = getattr(ddp_agent, name)
        assert f"{value.__module__}.{value.__name__}" == path


@pytest.mark.parametrize("name", ["DiLoc", "_Piece", "build", "MLP"])
def test_any_other_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'ddp_agent' has no attribute '{name}'"):
        getattr(ddp_agent, name)


def test_typing_reaches_users() -> None:
    spec = find_spec("ddp_agent")
    assert spec is not None
    assert Path(str(spec.origin)).with_name("py.typed").is_file()
