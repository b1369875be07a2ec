"""Who may import whom: design rules as a table, checked on the syntax trees; and what two commands really import."""

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

ROOT = Path(__file__).parents[1]

# Which modules of this package a module may import. The first pattern that fits a module is its row; `*` also
# matches dots, and a package's own row allows what lies in it. The order of rows is the order of the layers.
MAY_IMPORT: dict[str, list[str]] = {
    # Leaves: they know nobody, so anyone may know them.
    "ddp_agent": [],
    **{f"ddp_agent.{leaf}": [] for leaf in ("errors", "fields", "place", "clock", "console", "comm", "flat")},
    **{f"ddp_agent.{leaf}": [] for leaf in ("standing", "random_streams", "redaction", "sockets", "memory")},
    "ddp_agent.moment": [],
    "ddp_agent.cadences": ["moment", "fields"],
    # The four nouns. They do not know how they are configured, started, logged or saved.
    "ddp_agent.topology": ["comm"],
    "ddp_agent.reducers*": ["reducers*", "comm", "fields", "flat"],
    "ddp_agent.overlap": ["reducers*", "comm"],
    "ddp_agent.gradients": ["overlap", "reducers*", "comm", "flat"],
    "ddp_agent.fragments": ["reducers*", "comm"],
    "ddp_agent.uneven": ["sync.base", "reducers*", "comm"],
    "ddp_agent.ownership": ["sync.base", "reducers*", "topology", "flat", "alike"],
    "ddp_agent.sync*": [
        "sync*",
        "alike",
        "reducers*",
        "gradients",
        "fragments",
        "moment",
        "cadences",
        "topology",
        "comm",
        "flat",
        "fields",
    ],
    # What is trained, and on what: they do not know that there are other ranks.
    "ddp_agent.models*": ["models.*", "fields"],
    "ddp_agent.multi_task": [],
    "ddp_agent.datasets*": ["datasets.*", "fields", "errors", "memory"],
    # Configuration.
    "ddp_agent.optimizers": ["fields"],
    "ddp_agent.schedules": ["fields"],
    "ddp_agent.options": ["fields"],
    "ddp_agent.build": ["fields", "errors", "redaction"],
    "ddp_agent.catalogue": ["build"],
    "ddp_agent.config": [
        *("build", "fields", "errors", "options", "optimizers", "schedules", "checkpoint.folder"),
        *("datasets.base", "sync*", "reducers*", "cadences", "slicing.base", "slicing.tasks", "order"),
    ],
    # What a run leaves behind.
    "ddp_agent.run_directory": ["errors", "redaction"],
    "ddp_agent.manifest": ["run_directory", "errors"],
    "ddp_agent.layers": [],
    "ddp_agent.tracking": ["run_directory", "errors", "layers", "redaction"],
    "ddp_agent.agreement": ["comm", "errors"],
    "ddp_agent.checkpoint*": ["checkpoint.*", "manifest", "agreement", "run_directory", "comm", "errors"],
    "ddp_agent.skeleton": ["memory", "errors"],
    "ddp_agent.export": ["build", "manifest", "multi_task", "run_directory", "skeleton", "errors"],
    # The loop and what it is made of.
    "ddp_agent.alike": ["comm", "errors"],
    "ddp_agent.crew": ["alike", "comm"],
    "ddp_agent.elastic.comm": ["comm"],
    "ddp_agent.elastic.keeper": [],
    "ddp_agent.elastic.membership": ["elastic.keeper", "errors", "place"],
    "ddp_agent.elastic.crew": ["elastic.comm", "elastic.membership", "crew", "comm", "errors", "place"],
    "ddp_agent.elastic*": ["elastic.*", "place", "launch.composition"],  # which start it: they know no crew
    "ddp_agent.attempts": ["run_directory"],
    "ddp_agent.signs": [],
    "ddp_agent.watch": ["signs", "errors"],
    "ddp_agent.runtime": ["place", "comm", "watch", "errors", "redaction"],
    "ddp_agent.finite": ["sync.base", "errors"],
    "ddp_agent.link": ["errors"],
    "ddp_agent.stragglers": ["comm"],
    "ddp_agent.diagnostics": ["clock", "comm", "sync.base"],
    "ddp_agent.environment": [],
    "ddp_agent.profiling": ["clock", "options", "trainer"],
    "ddp_agent.slicing*": ["slicing.*", "fields", "random_streams"],
    "ddp_agent.order": ["slicing.base", "datasets.base", "random_streams"],
    "ddp_agent.census": ["order"],
    "ddp_agent.confusion": [],
    "ddp_agent.pictures*": ["pictures.*", "census", "confusion", "datasets.base"],
    "ddp_agent.loader": ["order", "random_streams", "errors", "place"],
    "ddp_agent.ema": ["flat"],
    "ddp_agent.evaluate": ["loader", "datasets.base", "comm"],
    "ddp_agent.exhibition": ["confusion", "datasets.base", "evaluate", "loader", "pictures.*", "tracking"],
    "ddp_agent.task_slicing": [
        *("datasets.base", "datasets.tasks", "multi_task", "slicing.base", "slicing.tasks"),
        *("sync.base", "ownership", "evaluate"),
    ],
    "ddp_agent.state": [
        *("alike", "checkpoint.writer", "clock", "comm", "errors", "link", "reducers*", "sync.base", "topology"),
    ],
    "ddp_agent.trainer": [
        *("state", "clock", "console", "tracking", "checkpoint.*", "loader", "evaluate", "ema", "errors", "options"),
        "schedules",
        *("comm", "topology", "datasets.base", "sync.base", "reducers*", "standing", "random_streams", "link"),
        *("stragglers", "diagnostics", "slicing.base", "slicing.shared", "order", "watch", "finite", "alike", "crew"),
        *("confusion", "exhibition"),
    ],
    "ddp_agent.run": ["*"],
    # Starting: knows how to begin and refuse, and of the rest only what `train.py` hands over.
    "ddp_agent.launch*": [
        *("launch*", "place", "runtime", "run_directory", "build", "catalogue", "errors", "attempts", "redaction"),
    ],
    # Tools of their own.
    "ddp_agent.report*": ["report*"],
    "ddp_agent.plan*": ["plan*", "report.files", "report.rows", "report.runs", "console"],
    "ddp_agent.bench*": ["*"],
    "train": ["launch", "run_directory", "config", "run"],
}

# Which modules may import something of others', by its name or the beginning of its dotted name.
ONLY_IN: dict[str, list[str]] = {
    "hydra": ["ddp_agent.launch.*"],
    "omegaconf": ["ddp_agent.launch.*"],
    "yaml": ["ddp_agent.launch.*", "ddp_agent.report.files"],
    "torch.distributed": [
        *("ddp_agent.comm", "ddp_agent.runtime", "ddp_agent.overlap", "ddp_agent.bench.*"),
        *("ddp_agent.launch.worker", "ddp_agent.launch.relaunch"),  # torchrun, and errors of its store
        "ddp_agent.elastic.*",
    ],
    "torchvision": ["ddp_agent.models.*", "ddp_agent.datasets.*", "ddp_agent.bench.*"],
    "torch.utils.tensorboard": ["ddp_agent.tracking"],
    "matplotlib": ["ddp_agent.report.*"],
    "rich": ["ddp_agent.console", "ddp_agent.report.*", "ddp_agent.plan.*", "ddp_agent.bench.*"],
    "safetensors": ["ddp_agent.export"],
    "lightning": ["ddp_agent.bench.*"],
    "accelerate": ["ddp_agent.bench.*"],
    "torchft": ["ddp_agent.elastic.*"],
}

# Imported inside functions only: slow, or not always there, and rarely needed.
ONLY_WHEN_NEEDED = ["torchvision", "torch.utils.tensorboard", "PIL", "torchft"]

# Without torch: a help text, a refusal and a report must not wait seconds for it.
WITHOUT_TORCH = ["ddp_agent.report*", "ddp_agent.plan*"]
WITHOUT_TORCH += ["ddp_agent.launch.composition", "ddp_agent.launch.command", "ddp_agent.launch"]
WITHOUT_TORCH += [f"ddp_agent.{leaf}" for leaf in ("errors", "fields", "build", "catalogue", "place", "run_directory")]
WITHOUT_TORCH += [f"ddp_agent.{leaf}" for leaf in ("redaction", "sockets", "memory", "launch.trust")]


@dataclass(frozen=True)
class Import:
    name: str  # dotted, the imported member included: `from a.b import c` is a.b.c
    when_needed: bool  # inside a function


@functools.cache
def imports(source: str, module: str, package: bool) -> list[Import]:
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    here = module if package else module.rpartition(".")[0]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), here)
            found += [Import(f"{origin}.{alias.name}", id(node) in inside) for alias in node.names]
    return found


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
        row = next((row for row in MAY_IMPORT if fnmatch(module, row)), None)
        if row is None:
            return [f"{module} is in no row of the table"]
        allowed = [f"ddp_agent.{pattern}" for pattern in MAY_IMPORT[row]]
        found = {f"imports {name}" for name in self.ours(module) if not fits(name, allowed)}
        for each in self.imports(module):
            if any(within(each.name, [name]) and not fits(module, where) for name, where in ONLY_IN.items()):
                found.add(f"imports {each.name}")
            if not each.when_needed and within(each.name, ONLY_WHEN_NEEDED):
                found.add(f"imports {each.name} outside a function")
        return sorted(f"{module} {what}" for what in found)

    def cycle(self) -> list[str]:
        """Modules that import one another, be it only when needed: then none of them can be read without the others."""
        try:
            TopologicalSorter({module: self.ours(module) for module in self.sources}).prepare()
        except CycleError as error:
            return list(error.args[1])
        return []

    def reaches(self, outside: str, module: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether importing `module`, and so the packages it lies in, imports `outside` as well."""
        if any(within(each.name, [outside]) and not each.when_needed for each in self.imports(module)):
            return True
        packages = {module.rsplit(".", cut)[0] for cut in range(1, module.count(".") + 1)}
        others = (packages | self.ours(module, at_once=True)) - seen - {module}
        return any(self.reaches(outside, other, seen | {module}) for other in others)


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [ROOT / "train.py", *sorted((ROOT / "ddp_agent").rglob("*.py"))]
CODE = Code({module_of(file): file.read_text(encoding="utf-8") for file in FILES})


@pytest.mark.parametrize("module", CODE.sources)
def test_every_module_keeps_to_the_table(module: str) -> None:
    assert CODE.violations(module) == []


def test_nobody_imports_in_a_circle() -> None:
    assert CODE.cycle() == []


@pytest.mark.parametrize("module", [module for module in CODE.sources if fits(module, WITHOUT_TORCH)])
def test_what_must_be_quick_does_not_wait_for_torch(module: str) -> None:
    assert not CODE.reaches("torch", module)


def test_the_table_has_no_rows_that_nobody_needs() -> None:
    assert [row for row in MAY_IMPORT if not any(fnmatch(module, row) for module in CODE.sources)] == []
    outside = {each.name for module in CODE.sources for each in CODE.imports(module)}
    assert [name for name in [*ONLY_IN, *ONLY_WHEN_NEEDED] if not any(within(each, [name]) for each in outside)] == []


# Controls: each rule sees its violation in a made-up source.


def changed(module: str, source: str) -> Code:
    return Code({**CODE.sources, module: source})


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("ddp_agent.sync.made_up", "from ddp_agent.trainer import Trainer", "imports ddp_agent.trainer"),
        ("ddp_agent.sync.made_up", "from ddp_agent import config", "imports ddp_agent.config"),
        ("ddp_agent.sync.made_up", "from ..trainer import Trainer", "imports ddp_agent.trainer"),
        ("ddp_agent.sync.made_up", "import torch.distributed as dist", "imports torch.distributed"),
        ("ddp_agent.sync.made_up", "from torch import distributed", "imports torch.distributed"),
        ("ddp_agent.reducers.made_up", "from ddp_agent.sync import DiLoCo", "imports ddp_agent.sync"),
        ("ddp_agent.reducers.made_up", "def f():\n    import omegaconf", "imports omegaconf"),
        ("ddp_agent.models.made_up", "from torch.distributed import get_rank", "imports torch.distributed.get_rank"),
        ("ddp_agent.models.made_up", "from torchvision import models", "imports torchvision.models outside a function"),
        ("ddp_agent.models.made_up", "from ddp_agent.datasets.base import Task", "imports ddp_agent.datasets.base"),
        ("ddp_agent.datasets.made_up", "import ddp_agent.comm", "imports ddp_agent.comm"),
        ("ddp_agent.config", "from hydra.utils import instantiate", "imports hydra.utils.instantiate"),
        ("ddp_agent.comm", "from ddp_agent.errors import DataError", "imports ddp_agent.errors"),
        ("ddp_agent.trainer", "from ddp_agent.sync import DiLoCo", "imports ddp_agent.sync"),
        ("ddp_agent.trainer", "def f():\n    from ddp_agent.launch import main", "imports ddp_agent.launch"),
        ("ddp_agent.launch.worker", "from ddp_agent.trainer import Trainer", "imports ddp_agent.trainer"),
        ("ddp_agent.report.table", "from ddp_agent.run_directory import Record", "imports ddp_agent.run_directory"),
        ("ddp_agent.trainer", "import matplotlib.pyplot as plt", "imports matplotlib.pyplot"),
        ("ddp_agent.made_up", "", "is in no row of the table"),
    ],
)  # fmt: skip
def test_each_rule_sees_its_violation(module: str, source: str, found: str) -> None:
    assert changed(module, source).violations(module) == [f"{module} {found}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ddp_agent.sync.made_up", "import torch\nfrom ddp_agent.sync.base import SyncStrategy"),
        ("ddp_agent.sync.made_up", "from ddp_agent import comm\nfrom .base import Periodic"),
        ("ddp_agent.models.made_up", "def f():\n    from torchvision import models"),
        ("ddp_agent.launch.made_up", "import hydra"),
    ],
)
def test_what_is_allowed_is_let_through(module: str, source: str) -> None:
    assert changed(module, source).violations(module) == []


@pytest.mark.parametrize(
    "source", ["from ddp_agent.sync.diloco import DiLoCo", "def f():\n    from ddp_agent import run"]
)
def test_a_circle_is_seen(source: str) -> None:
    assert len(changed("ddp_agent.comm", source).cycle()) > 2


@pytest.mark.parametrize("leaf", ["ddp_agent.errors", "ddp_agent", "ddp_agent.fields"])
@pytest.mark.parametrize("source", ["import torch", "from torch.nn import Module", "from ddp_agent.comm import Comm"])
def test_torch_is_seen_through_other_modules(leaf: str, source: str) -> None:
    assert changed(leaf, source).reaches("torch", "ddp_agent.build")
    assert not changed(leaf, f"def f():\n    {source}").reaches("torch", "ddp_agent.build")


# What is really imported


def imported(command: list[str], cwd: Path) -> set[str]:
    """By a fresh interpreter, as `-X importtime` reports it."""
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
from ddp_agent.launch.composition import Configs
from train import check
context = Configs(folder=Path({str(ROOT / "conf")!r}), name="config").compose([]).checked(check, lambda cfg: 2)
import ddp_agent.run
from ddp_agent.build import build
task = build("dataset", context.cfg["dataset"]).load()
build("model", context.cfg["model"], input_shape=task.input_shape, outputs=task.outputs)
"""


def test_the_default_run_imports_no_torchvision(tmp_path: Path) -> None:
    """Up to the first step: in the rest torch may import what it likes, and the table keeps us from it."""
    found = imported(["-c", UP_TO_TRAINING], tmp_path)
    assert {"torch", "omegaconf", "ddp_agent"} <= found
    assert not {"torchvision", "matplotlib", "PIL"} & found
