"""Import rules as a table, checked on the syntax trees, and the modules that two commands really import."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Which folders and files of this package a folder may import, beside itself. The order of rows is the order of layers:
# a row names only what stands above it.
LEAVES = ("errors", "rng")  # they know nobody, so anyone may know them
MAY_IMPORT: dict[str, list[str]] = {
    "errors": [],
    "rng": [],
    "config": [],
    "distributed": [],
    "models": ["config"],
    "data": ["config", "distributed"],
    "reducers": ["config", "distributed"],
    "sync": ["config", "distributed", "reducers"],
    "outputs": ["config", "models", "data"],
    "checkpoint": ["config", "distributed", "models", "outputs"],
    "training": [
        *("config", "distributed", "models", "data", "reducers", "sync", "outputs", "checkpoint"),
    ],
    "cli": ["config", "distributed", "outputs"],
    "elastic": ["config", "distributed", "outputs", "checkpoint", "cli"],
    "run": ["*"],
    "report": ["config", "outputs"],  # `untrusted`, since it reads what others prepared; streams and the state of a run
    "plan": ["config", "report", "outputs", "distributed"],
    "netlab": ["outputs"],
    "__main__": ["*"],
}

# Which modules may import something of others', by its name or the beginning of its dotted name.
ONLY_IN: dict[str, list[str]] = {
    "hydra": ["ddp_agent.cli.*"],
    "omegaconf": ["ddp_agent.cli.*"],
    "yaml": ["ddp_agent.cli.*", "ddp_agent.report.runs.files"],
    "torch.distributed": [
        *("ddp_agent.distributed.*", "ddp_agent.sync.engine.ddp_hook"),
        *("ddp_agent.cli.rank_process", "ddp_agent.cli.relaunch"),  # torchrun, and errors of its store
        "ddp_agent.elastic.*",
    ],
    "torchvision": ["ddp_agent.models.*", "ddp_agent.data.*"],
    "torch.utils.tensorboard": ["ddp_agent.outputs.tensorboard"],
    "matplotlib": ["ddp_agent.report.*"],
    "rich": ["ddp_agent.outputs.console", "ddp_agent.report.*", "ddp_agent.plan.*"],
    "safetensors": ["ddp_agent.checkpoint.export"],
    "torchft": ["ddp_agent.elastic.*"],
}

# Imported inside functions only: slow, or not always there, and rarely needed.
ONLY_WHEN_NEEDED = ["torchvision", "torch.utils.tensorboard", "PIL", "torchft"]

# Without torch: a help text, a refusal and a report must not wait seconds for it.
WITHOUT_TORCH = ["ddp_agent", "ddp_agent.errors", "ddp_agent.config*", "ddp_agent.report*", "ddp_agent.plan*"]
WITHOUT_TORCH += ["ddp_agent.cli", "ddp_agent.cli.composition", "ddp_agent.cli.command", "ddp_agent.cli.trust"]
WITHOUT_TORCH += ["ddp_agent.distributed.process", "ddp_agent.distributed.ports"]
WITHOUT_TORCH += ["ddp_agent.outputs.run_directory", "ddp_agent.netlab*", "ddp_agent.__main__", "ddp_agent.cli.program"]


@dataclass(frozen=True)
class Import:
    name: str  # dotted, the imported member included: `from a.b import c` is a.b.c
    when_needed: bool  # inside a function, or below `if TYPE_CHECKING:`


def _is_read_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


@functools.cache
def imports(source: str, module: str, package: bool) -> list[Import]:
    tree = ast.parse(source)
    inside = {id(node) for block in filter(_is_read_later, ast.walk(tree)) for node in ast.walk(block)}
    here = module if package else module.rpartition(".")[0]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), here)
            found += [Import(f"{origin}.{alias.name}", id(node) in inside) for alias in node.names]
    return found


def room(module: str) -> str:
    """The folder or file of the package root that a module is in; "" for the root itself."""
    return module.split(".")[1] if "." in module else ""


def within(name: str, parents: Iterable[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Code:
    """Sources by module name. Packages are those that have modules in them."""

    sources: Mapping[str, str]

    def imports(self, module: str) -> list[Import]:
        package = any(name.startswith(f"{module}.") for name in self.sources)
        return imports(self.sources[module], module, package)

    def ours(self, module: str, *, at_once: bool = False) -> set[str]:
        """The modules of these sources that it imports; `at_once`: when it is imported itself."""
        found = [each.name for each in self.imports(module) if not (at_once and each.when_needed)]
        # What is imported is a module, or else a member of one.
        return {name if name in self.sources else name.rpartition(".")[0] for name in found} & set(self.sources)

    def violations(self, module: str) -> list[str]:
        row = room(module)
        if row not in MAY_IMPORT:
            return [f"{module} is in no row of the table"]
        allowed = {row, *LEAVES, *MAY_IMPORT[row]}
        found = {f"imports {name}" for name in self.ours(module) if not {"*", room(name)} & allowed}
        for each in self.imports(module):
            if any(within(each.name, [name]) and not fits(module, where) for name, where in ONLY_IN.items()):
                found.add(f"imports {each.name}")
            if not each.when_needed and within(each.name, ONLY_WHEN_NEEDED):
                found.add(f"imports {each.name} outside a function")
        return sorted(f"{module} {what}" for what in found)

    def cycle(self) -> list[str]:
        """Modules that import one another, be it only when needed: then none of them can be read without the others.

        The package itself may name any of its modules: it only hands on what they define.
        """
        try:
            TopologicalSorter({module: self.ours(module) for module in self.sources if room(module)}).prepare()
        except CycleError as error:
            return list(error.args[1])
        return []

    def reaches(self, outside: str, module: str, seen: frozenset[str] = frozenset()) -> bool:
        """Return whether importing `module`, and so the packages around it, imports `outside` as well."""
        if any(within(each.name, [outside]) and not each.when_needed for each in self.imports(module)):
            return True
        packages = {module.rsplit(".", cut)[0] for cut in range(1, module.count(".") + 1)}
        others = (packages | self.ours(module, at_once=True)) - seen - {module}
        return any(self.reaches(outside, other, seen | {module}) for other in others)


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted((ROOT / "ddp_agent").rglob("*.py"))
CODE = Code({module_of(file): file.read_text(encoding="utf-8") for file in FILES})


@pytest.mark.parametrize("module", [module for module in CODE.sources if room(module)])
def test_every_module_keeps_to_the_table(module: str) -> None:
    assert CODE.violations(module) == []


def test_nobody_imports_in_a_circle() -> None:
    assert CODE.cycle() == []


@pytest.mark.parametrize("module", [module for module in CODE.sources if fits(module, WITHOUT_TORCH)])
def test_what_must_be_quick_does_not_wait_for_torch(module: str) -> None:
    assert not CODE.reaches("torch", module)


def test_the_table_has_no_rows_that_nobody_needs() -> None:
    assert set(MAY_IMPORT) == {room(module) for module in CODE.sources} - {""}
    for row, allowed in MAY_IMPORT.items():
        used = {room(name) for module in CODE.sources if room(module) == row for name in CODE.ours(module)}
        assert set(allowed) <= used | {"*"}, row
    assert not any(MAY_IMPORT[leaf] for leaf in LEAVES)
    outside = {each.name for module in CODE.sources for each in CODE.imports(module)}
    assert [name for name in [*ONLY_IN, *ONLY_WHEN_NEEDED] if not any(within(each, [name]) for each in outside)] == []


# Controls: each rule sees its violation in a made-up source.


def changed(module: str, source: str) -> Code:
    return Code({**CODE.sources, module: source})


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("ddp_agent.sync.made_up", "from ddp_agent.training.ema import EMA", "imports ddp_agent.training.ema"),
        ("ddp_agent.sync.made_up", "from ddp_agent import run", "imports ddp_agent.run"),
        ("ddp_agent.sync.made_up", "from ..training.ema import EMA", "imports ddp_agent.training.ema"),
        ("ddp_agent.sync.made_up", "import torch.distributed as dist", "imports torch.distributed"),
        ("ddp_agent.sync.made_up", "from torch import distributed", "imports torch.distributed"),
        ("ddp_agent.reducers.made_up", "from ddp_agent.sync import DiLoCo", "imports ddp_agent.sync"),
        ("ddp_agent.reducers.made_up", "def f():\n    import omegaconf", "imports omegaconf"),
        ("ddp_agent.models.made_up", "from torch.distributed import get_rank", "imports torch.distributed.get_rank"),
        ("ddp_agent.models.made_up", "from torchvision import models", "imports torchvision.models outside a function"),
        ("ddp_agent.models.made_up", "from ddp_agent.data.loader import Batch", "imports ddp_agent.data.loader"),
        ("ddp_agent.data.datasets.made_up", "import ddp_agent.sync.base", "imports ddp_agent.sync.base"),
        ("ddp_agent.training.settings", "from hydra.utils import instantiate", "imports hydra.utils.instantiate"),
        ("ddp_agent.distributed.comm", "from ddp_agent.config.fields import fits", "imports ddp_agent.config.fields"),
        ("ddp_agent.training.ema", "def f():\n    from ddp_agent.cli import main", "imports ddp_agent.cli"),
        ("ddp_agent.cli.made_up", "from ddp_agent.training.ema import EMA", "imports ddp_agent.training.ema"),
        ("ddp_agent.report.made_up", "from ddp_agent.training.ema import EMA", "imports ddp_agent.training.ema"),
        ("ddp_agent.training.made_up", "import matplotlib.pyplot as plt", "imports matplotlib.pyplot"),
        ("ddp_agent.made_up", "", "is in no row of the table"),
    ],
)  # fmt: skip
def test_each_rule_sees_its_violation(module: str, source: str, found: str) -> None:
    assert changed(module, source).violations(module) == [f"{module} {found}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ddp_agent.sync.made_up", "import torch\nfrom ddp_agent.sync.base import SyncStrategy"),
        ("ddp_agent.sync.made_up", "from ddp_agent.distributed import comm\nfrom .periodic import Periodic"),
        ("ddp_agent.models.made_up", "def f():\n    from torchvision import models"),
        ("ddp_agent.cli.made_up", "import hydra"),
    ],
)
def test_what_is_allowed_is_let_through(module: str, source: str) -> None:
    assert changed(module, source).violations(module) == []


@pytest.mark.parametrize(
    "source", ["from ddp_agent.sync.diloco import DiLoCo", "def f():\n    from ddp_agent import run"]
)
def test_a_circle_is_seen(source: str) -> None:
    assert len(changed("ddp_agent.distributed.comm", source).cycle()) > 2


@pytest.mark.parametrize("leaf", ["ddp_agent.errors", "ddp_agent", "ddp_agent.config.fields"])
@pytest.mark.parametrize(
    "source", ["import torch", "from torch.nn import Module", "from ddp_agent.distributed.comm import Comm"]
)
def test_torch_is_seen_through_other_modules(leaf: str, source: str) -> None:
    assert changed(leaf, source).reaches("torch", "ddp_agent.config.registry")
    for later in ("def f():", "if TYPE_CHECKING:"):
        assert not changed(leaf, f"{later}\n    {source}").reaches("torch", "ddp_agent.config.registry")
    assert changed(leaf, f"if 1:\n    {source}").reaches("torch", "ddp_agent.config.registry")


# What is really imported


def imported(command: list[str], cwd: Path) -> set[str]:
    """Return the packages that a fresh interpreter imports, as `-X importtime` reports them."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_help_imports_no_torch(tmp_path: Path) -> None:
    found = imported([str(ROOT / "train.py"), "--help"], tmp_path)
    assert {"hydra", "ddp_agent"} <= found
    assert not {"torch", "torchvision", "matplotlib", "tensorboard", "rich"} & found


UP_TO_TRAINING = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from ddp_agent.cli.composition import Configs
from train import check
context = Configs(folder=Path({str(ROOT / "conf")!r}), name="config").compose([]).checked(check, lambda cfg: 2)
import ddp_agent.run
from ddp_agent.config.registry import build
task = build("dataset", context.cfg["dataset"]).load()
build("model", context.cfg["model"], input_shape=task.data.input_shape, outputs=task.objective.outputs)
"""


def test_the_default_run_imports_no_torchvision(tmp_path: Path) -> None:
    """Up to the first step: in the rest torch may import what it likes, and the table keeps us from it."""
    found = imported(["-c", UP_TO_TRAINING], tmp_path)
    assert {"torch", "omegaconf", "ddp_agent"} <= found
    assert not {"torchvision", "matplotlib", "PIL"} & found
