"""Reads everything that is shipped, and finds what must not be there: SECURITY.md has the rules.

What is tested elsewhere: a hostile checkpoint (test_checkpoint_damage.py), `_target_` and places outside
(test_trust.py, test_bad_input.py), archives (test_archive.py), secrets and ports of a real run
(test_secrets_and_ports.py), damaged and lying files of every kind (test_fuzz_readers.py), other things in the place of
files (test_hostile_folders.py, test_files_of_a_run.py, test_leftovers.py), states that cost more than their file
(test_plain_state.py).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMM = "ddp_agent/distributed/process_group_comm.py"
# The benchmark's yardsticks are what people write without Comm; no run uses them.
MAY_CALL_COLLECTIVES = {COMM, "benchmarks/yardsticks.py"}

DOWNLOAD = "ddp_agent/data/readers/download.py"
ARCHIVE = "ddp_agent/data/readers/archive.py"
# In a text: a place that everybody may write, known beforehand; an address that everybody may reach.
FORBIDDEN_TEXTS = {
    re.compile(r"^/(var/)?tmp/"): "is a fixed name in a folder that all may write: mkdtemp makes one of its own",
    re.compile(r"^0\.0\.0\.0$|^::$|--?bind_all"): "lets other machines in",
}

MOVIELENS = ("ddp_agent/data/readers/ratings.py", "::")  # what its files have between columns

# Name, or the beginning of dotted names, to the reason.
FORBIDDEN = {
    **dict.fromkeys(["pickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"], "runs code of what it reads"),
    **dict.fromkeys(["torch.package", "torch.jit.load"], "runs code of what it reads"),
    "torch.distributed.checkpoint": "unpickles its metadata without restriction",
    **dict.fromkeys(["torch.serialization.load", "joblib", "pandas.read_pickle"], "runs code of what it reads"),
    **dict.fromkeys(["eval", "exec", "__import__", "builtins.eval", "builtins.exec"], "runs text as code"),
    **dict.fromkeys(["shutil.unpack_archive", "torchvision.datasets.utils"], "unpacks to wherever an archive says"),
    **dict.fromkeys(["urllib.request.urlretrieve", "requests", "torch.hub"], "downloads what nobody compares"),
    "tempfile.mktemp": "names a file that somebody else may make first",
    **dict.fromkeys([f"yaml.{name}load" for name in ("", "full_", "unsafe_")], "builds any object the file names"),
    **dict.fromkeys([f"yaml.{name}load_all" for name in ("", "full_", "unsafe_")], "builds any object it names"),
    **dict.fromkeys(["hydra.utils.instantiate", "hydra.utils.call"], "calls whatever a config names"),
    **dict.fromkeys(["os.system", "os.popen", "subprocess.getoutput"], "runs text in a shell"),
}
OBJECTS = [
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
]
COLLECTIVES = [
    "all_gather",
    "all_gather_into_tensor",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "batch_isend_irecv",
    "broadcast",
    "gather",
    "irecv",
    "isend",
    "monitored_barrier",
    "new_group",
    "new_subgroups",
    "new_subgroups_by_enumeration",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "send",
]
# Everything that others may have prepared is opened by config/untrusted.py: a plain `open` waits for a FIFO.
MAY_OPEN = {
    **dict.fromkeys(["ddp_agent/config/registry.py", "ddp_agent/distributed/consistency.py"], "this package's sources"),
    **dict.fromkeys([f"ddp_agent/distributed/{name}.py" for name in ("ports", "heartbeat")], "/proc"),
    **dict.fromkeys(["ddp_agent/training/link_bytes.py", "ddp_agent/outputs/run_files.py"], "/proc"),
    **dict.fromkeys(["ddp_agent/elastic/__main__.py", "ddp_agent/elastic/supervisor.py"], "/dev/null"),
    **dict.fromkeys(["ddp_agent/outputs/files.py", DOWNLOAD], "creates new files"),
    "ddp_agent/config/untrusted.py": "the one way",
    "ddp_agent/report/page/page.py": "this package's style sheet",
    "ddp_agent/netlab/command.py": "a script that the user starts",
    "ddp_agent/cli/sweep_record.py": "a file in a folder that the sweep itself made",
}
MAY_REBIND_DATA = ("ddp_agent/sync/engine/storage_guard.py",)  # it undoes what others did
DISTRIBUTED = ("torch.distributed", "torch.distributed.distributed_c10d")


def violations(source: str, path: str) -> list[str]:
    tree = ast.parse(source, path)
    origins = imported_names(tree)
    found = []
    for node in ast.walk(tree):
        found += [f"{path}:{line}: {what}" for line, what in _violations_of(node, origins, path)]
    return found


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Return the meaning of each name that an import binds: `import torch.distributed as dist` gives dist."""
    origins = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                origins[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return origins


def dotted_name(node: ast.AST, origins: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return origins.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value, origins)}.{node.attr}"
    return ""


def _violations_of(node: ast.AST, origins: dict[str, str], path: str) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from _violations_of_name(alias.name, node.lineno, path)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            yield from _violations_of_name(f"{node.module}.{alias.name}", node.lineno, path)
    elif isinstance(node, ast.Name | ast.Attribute):
        yield from _violations_of_name(dotted_name(node, origins), node.lineno, path)
        if _rebinds_data(node) and path not in MAY_REBIND_DATA:
            yield node.lineno, "assigns to .data, which leaves the optimizer with the old storage"
    elif isinstance(node, ast.Call):
        yield from _violations_of_call(node, dotted_name(node.func, origins))
        if path.startswith("ddp_agent/") and path not in MAY_OPEN and _opens_a_file(node):
            yield node.lineno, "opens a file otherwise than ddp_agent/config/untrusted.py"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        for text, reason in FORBIDDEN_TEXTS.items():
            if text.search(node.value) and (path, node.value) != MOVIELENS:
                yield node.lineno, f"{node.value!r} {reason}"


def _opens_a_file(call: ast.Call) -> bool:
    """Return whether a call opens a path, and not a file of an archive. `opener=no_link` is one of the ways."""
    if isinstance(call.func, ast.Name):
        return call.func.id == "open" and "opener" not in {keyword.arg for keyword in call.keywords}
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("read_text", "read_bytes", "open"):
        return False
    modes = [argument.value for argument in call.args[:1] if isinstance(argument, ast.Constant)]
    owner = call.func.value
    of_a_module = isinstance(owner, ast.Name) and owner.id in ("os", "tarfile", "Image", "archive", "zipfile")
    return not of_a_module and "xb" not in modes


def _rebinds_data(node: ast.Name | ast.Attribute) -> bool:
    """`p.data = …`; an object's own field of that name is no tensor's."""
    if not (isinstance(node, ast.Attribute) and node.attr == "data" and isinstance(node.ctx, ast.Store)):
        return False
    return not (isinstance(node.value, ast.Name) and node.value.id == "self")


def _violations_of_name(name: str, line: int, path: str) -> Iterator[tuple[int, str]]:
    for forbidden, reason in FORBIDDEN.items():
        if name == forbidden or name.startswith(f"{forbidden}."):
            yield line, f"{name} {reason}"
    module, _, member = name.rpartition(".")
    if member in OBJECTS:
        yield line, f"{name} unpickles what a peer sent"
    if module in DISTRIBUTED and member in COLLECTIVES and path not in MAY_CALL_COLLECTIVES:
        yield line, f"{name} outside {COMM} is traffic that nobody counts"
    if name == "urllib.request.urlopen" and path != DOWNLOAD:
        yield line, f"{name} outside {DOWNLOAD}, where sha256 is compared"
    if member in ("extractall", "extract") and path != ARCHIVE:
        yield line, f"{name} outside {ARCHIVE}, where names and sizes are looked at"


def _violations_of_call(call: ast.Call, name: str) -> Iterator[tuple[int, str]]:
    literals = {
        keyword.arg: keyword.value.value for keyword in call.keywords if isinstance(keyword.value, ast.Constant)
    }
    if name == "torch.load" and literals.get("weights_only") is not True:
        yield call.lineno, "torch.load without a literal weights_only=True"
    given = {keyword.arg for keyword in call.keywords}
    for name in ("allow_pickle", "shell"):
        if name in given and literals.get(name) is not False:
            yield call.lineno, f"{name} that is not a literal False"
    if literals.get("download") is True:
        yield call.lineno, "download=True: ours compare sha256"


def shipped_files() -> list[Path]:
    folders = [ROOT / "ddp_agent", ROOT / "launch"]
    return [ROOT / "train.py", *(file for folder in folders for file in sorted(folder.rglob("*.py")))]


@pytest.mark.parametrize("file", shipped_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_shipped_runs_foreign_code_or_hides_traffic(file: Path) -> None:
    assert violations(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))) == []


def test_nobody_may_open_files_who_opens_none() -> None:
    for path in MAY_OPEN.keys() - {"ddp_agent/config/untrusted.py"}:
        nodes = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        assert any(isinstance(node, ast.Call) and _opens_a_file(node) for node in nodes), path


def test_the_walk_reaches_the_code_that_has_something_to_find() -> None:
    assert {ROOT / COMM, ROOT / "ddp_agent/sync/diloco.py"} <= set(shipped_files())
    assert violations((ROOT / COMM).read_text(encoding="utf-8"), "elsewhere.py") != []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "from cloudpickle import dumps",
        "def f():\n    import marshal",
        "import torch.distributed.checkpoint as dcp",
        "from torch.distributed import checkpoint",
        "import torch\ntorch.distributed.checkpoint.load({})",
        "eval('1')",
        "run = exec",
        "import os\nos.system('ls')",
        "import yaml\nyaml.load(text)",
        "from yaml import unsafe_load",
        "from hydra.utils import instantiate",
        "import hydra\nhydra.utils.instantiate(node)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=safe)",
        "from torch import load as read\nread(path)",
        "import torch\ntorch.hub.load('a', 'b')",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
        "import numpy\nnumpy.load(path, allow_pickle=trusted)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import subprocess\nsubprocess.run(text, shell=1)",
        "__import__('os')",
        "from torch.serialization import load",
        "import builtins\nbuiltins.exec(text)",
        "import os\nos.popen('ls')",
        "import tempfile\ntempfile.mktemp()",
        "path = '/tmp/mine'",
        "server.bind(('0.0.0.0', 80))",
        "command = ['tensorboard', '--bind_all']",
        "import urllib.request\nurllib.request.urlopen(url)",
        "from urllib.request import urlretrieve",
        "import shutil\nshutil.unpack_archive(path)",
        "tar.extractall(folder)",
        "Files(root, download=True)",
        "import torch.distributed as dist\ndist.all_gather_object(out, value)",
        "from torch.distributed import broadcast_object_list",
        "import torch.distributed as dist\ndist.all_reduce(tensor)",
        "import torch\ntorch.distributed.barrier()",
        "from torch import distributed\nsend = distributed.isend",
        "from torch.distributed import all_reduce",
        "from torch.distributed.distributed_c10d import broadcast",
        "p.data = tensor",
        "p.data += tensor",
        "a, p.data = pair",
        "open(path)",
        "open(path, 'rb', buffering=0)",
        "path.read_text()",
        "(folder / name).read_bytes()",
        "path.open()",
        "model.weight.data: Tensor = tensor",
    ],
)
def test_each_forbidden_thing_is_found(source: str) -> None:
    assert violations(source, "ddp_agent/made_up.py") != []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
        "model.eval()",
        "model.load(path)",
        "import torch.distributed as dist\ndist.get_rank()",
        "comm.all_reduce_(tensor)",
        "import functools\nfunctools.reduce(f, values)",
        "digest.update(tensor.numpy().data)",
        "data = tensor",
        "open(path, 'a', opener=no_link)",
        "tarfile.open(fileobj=file)",
        "archive.open(member)",
        "read_text(path, 1000)",
        "self.data = inputs",
        "from yaml import safe_load",
        "import numpy\nnumpy.load(path, allow_pickle=False)",
        "import tempfile\ntempfile.mkdtemp()",
        "path = root / 'tmp'",
        "Files(root, download=wanted)",
    ],
)
def test_what_looks_alike_is_let_through(source: str) -> None:
    assert violations(source, "ddp_agent/made_up.py") == []
