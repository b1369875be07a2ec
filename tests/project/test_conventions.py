"""Conventions of the sources: docstrings that are read once, and no question for a piece's class outside its folder."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ddp_agent"
SOURCES = sorted(file for folder in (PACKAGE, ROOT / "benchmarks") for file in folder.rglob("*.py"))

# A first line that begins so is a phrase without its noun or verb.
HEADLESS = re.compile(
    r"(What|Whatever|Of|How|Whether|Those|Who|Whoever|Whom|Where|Whose|Which|As|By|With|In|After|Beside)\b"
)
# Folders of pieces that others know by their traits. `isinstance` of the base itself asks for no choice.
PIECES = ("sync", "reducers")
BASES = {"SyncStrategy", "Reducer", "Cadence", "OuterOptimizer"}
FOREIGN = ("nn", "torch")  # nn.Linear is no cadence
EXPORTS = "ddp_agent/__init__.py"  # names every public class, to import it lazily

Rule = Callable[[str, str], Iterator[str]]


def headless_docstrings(source: str, _: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if HEADLESS.match(first):
                yield first


def choices() -> dict[str, str]:
    """Every class that is a choice of a mode, reducer or cadence, or a base of some: its folder in the package."""
    found: dict[str, str] = {}
    for folder in PIECES:
        for file in (PACKAGE / folder).rglob("*.py"):
            if "engine" not in file.parts:
                nodes = ast.parse(file.read_text(encoding="utf-8")).body
                found |= {node.name: folder for node in nodes if isinstance(node, ast.ClassDef)}
    return {name: folder for name, folder in found.items() if name not in BASES and not name.startswith("_")}


CHOICES = choices()
# The names that a user types: sync=diloco. A few may be asked for: the usual baselines, and names of precisions.
TYPED = {file.stem for group in ("sync", "reducer", "cadence") for file in (ROOT / "conf" / group).glob("*.yaml")}
TYPED -= {"allreduce", "independent", "dense", "fixed", "bf16", "fp16"}
# Reads runs of versions whose summary did not state its traffic: the names are those of that time.
OLD_RUNS = "ddp_agent/plan/history.py"


def asked_for_by_class(source: str, path: str) -> Iterator[str]:
    """Yield questions for a piece's class, as a class or by its name, in a file of another folder."""
    own = {name for name, folder in CHOICES.items() if path.startswith(f"ddp_agent/{folder}/")}
    for node in ast.walk(ast.parse(source)):
        for name, question in questions(node):
            known = (set() if path == OLD_RUNS else TYPED) if question == "typed" else CHOICES.keys() - own
            if name in known and not (path == EXPORTS and question == "as a string"):
                yield f"line {getattr(node, 'lineno', 0)}: {name} {question}"


def questions(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, classes]):
            yield from ((name, "in isinstance") for name in names(classes))
        case ast.MatchClass(cls=cls):
            yield from ((name, "in a pattern") for name in names(cls))
        case ast.Compare(left=ast.Call(func=ast.Name(id="type")), comparators=others):
            yield from ((name, "compared with type()") for other in others for name in names(other))
        case ast.Compare(comparators=others):
            parts = [part for other in others for part in ast.walk(other) if isinstance(part, ast.Constant)]
            yield from ((part.value, "typed") for part in parts if isinstance(part.value, str))
        case ast.Constant(value=str(text)):
            yield text, "as a string"


def names(node: ast.AST) -> list[str]:
    """The last part of every dotted name in an expression."""
    attributes = [part for part in ast.walk(node) if isinstance(part, ast.Attribute)]
    ours = [part.attr for part in attributes if not (isinstance(part.value, ast.Name) and part.value.id in FOREIGN)]
    return ours + [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]


RULES: dict[str, Rule] = {"docstrings": headless_docstrings, "traits": asked_for_by_class}


@pytest.mark.parametrize("rule", RULES)
def test_every_source_keeps_to_the_conventions(rule: str) -> None:
    paths = {str(file.relative_to(ROOT)): file for file in SOURCES}
    found = {path: list(RULES[rule](file.read_text(encoding="utf-8"), path)) for path, file in paths.items()}
    assert {path: problems for path, problems in found.items() if problems} == {}


def test_the_walk_finds_the_pieces() -> None:
    assert {"AllReduce", "StreamingDiLoCo", "Dense", "PowerSGD", "Fixed"} <= CHOICES.keys()
    assert not BASES & CHOICES.keys()


# Controls


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        ("docstrings", "ddp_agent/made_up.py", '"""What a rank does."""'),
        ("docstrings", "ddp_agent/made_up.py", 'def f():\n    """Of two ranks, the first."""'),
        ("docstrings", "ddp_agent/made_up.py", 'class A:\n    async def f():\n        """Whether it is there."""'),
        ("traits", "ddp_agent/training/made_up.py", "isinstance(sync, DiLoCo)"),
        ("traits", "ddp_agent/training/made_up.py", "isinstance(sync, int | modes.LocalSGD)"),
        ("traits", "ddp_agent/training/made_up.py", "isinstance(cadence, (int, Fixed))"),
        ("traits", "ddp_agent/sync/made_up.py", "isinstance(reducer, reducers.PowerSGD)"),
        ("traits", "ddp_agent/plan/made_up.py", "if type(sync) is Gossip: pass"),
        ("traits", "ddp_agent/plan/made_up.py", "match sync:\n    case EASGD(): pass"),
        ("traits", "ddp_agent/plan/made_up.py", "NAMES = {'AllReduce': 1}"),
        ("traits", "ddp_agent/plan/made_up.py", "if mode in ('gossip', 'local'): pass"),
        ("traits", "benchmarks/made_up.py", "issubclass(reducer, TopK)"),
    ],
)
def test_each_convention_sees_its_violation(rule: str, path: str, source: str) -> None:
    assert len(list(RULES[rule](source, path))) == 1


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        ("docstrings", "ddp_agent/made_up.py", '"""Return what was asked for. As in the paper."""'),
        ("docstrings", "ddp_agent/made_up.py", 'class Inner:\n    """Inner optimizer."""'),
        ("traits", "ddp_agent/sync/made_up.py", "isinstance(sync, DiLoCo)"),
        ("traits", "ddp_agent/training/made_up.py", "isinstance(sync, SyncStrategy)\nsync = DiLoCo(period=2)"),
        ("traits", "ddp_agent/training/made_up.py", "isinstance(module, nn.Linear)"),
        ("traits", "ddp_agent/__init__.py", "EXPORTS = {'AllReduce': 'ddp_agent.sync'}"),
    ],
)
def test_each_convention_lets_the_rest_through(rule: str, path: str, source: str) -> None:
    assert list(RULES[rule](source, path)) == []
