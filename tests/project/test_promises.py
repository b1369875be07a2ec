"""Every command and every promise of README, SECURITY.md, docs/reliability.md, docs/elastic.md and launch/README.md.

Each has a proof: a test that exists, or words of the document that say what is not promised. A new command or row
without a proof fails here. The commands themselves are run in tests/end_to_end/test_documented_commands.py.
"""

import ast
import re
import shlex
import tomllib
from collections.abc import Sequence
from functools import cache

import promised
import pytest
from configs import settings
from documents import DOCUMENTS, ROOT, commands, points, rows, text_of

from ddp_agent.cli.sweep import _first_job

TYPED = [(document, command) for document in DOCUMENTS for command in commands(document)]
TRAINS = re.compile(r"(train\.py|(local|multinode|elastic|check)\.sh|slurm\.sbatch)\b")


def entry_of(command: str) -> str:
    fitting = [start for start in promised.COMMANDS if command.startswith(start)]
    return max(fitting, key=len, default="")


@cache
def collected_from(path: str) -> frozenset[str]:
    """Names of the functions that pytest collects from a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_")


def unproven(proofs: Sequence[str]) -> list[str]:
    """Return the proofs that are none: a test that is not there, or words that no document says."""
    wrong = [] if proofs else ["no proof"]
    for proof in proofs:
        if proof.startswith(promised.SAID):
            if not any(proof.removeprefix(promised.SAID) in " ".join(text_of(each).split()) for each in DOCUMENTS):
                wrong.append(f"no document says: {proof}")
            continue
        path, _, name = proof.partition("::")
        if not (ROOT / path).is_file() or not re.fullmatch(r"tests/\w+/test_\w+\.py", path):
            wrong.append(f"no such file: {path}")
        elif not collected_from(path) or (name and name not in collected_from(path)):
            wrong.append(f"no such test: {proof}")
    return wrong


@pytest.mark.parametrize(("document", "command"), TYPED)
def test_every_command_has_a_proof(document: str, command: str) -> None:
    assert entry_of(command), "neither run nor proven: tests/project/promised.py"
    assert unproven(promised.COMMANDS[entry_of(command)]) == []


def test_no_proof_is_of_a_command_that_is_gone() -> None:
    assert set(promised.COMMANDS) == {entry_of(command) for _, command in TYPED}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_row_of_every_table_has_a_proof(document: str) -> None:
    shown = [(head, cells) for head, cells in rows(document) if (document, head) != ("docs/reliability.md", "fault")]
    for head, cells in shown:
        proofs = promised.ROWS[document, head]
        assert unproven(proofs[cells[0]] if isinstance(proofs, dict) else proofs) == [], cells[0]
    expected = {head: set(proofs) for (where, head), proofs in promised.ROWS.items() if where == document}
    for head, names in expected.items():
        first = {cells[0] for found, cells in shown if found == head}
        assert first, f"{head}: no such table"
        assert not isinstance(promised.ROWS[document, head], dict) or first == names, "a proof of a row that is gone"


def test_every_fault_names_its_test() -> None:
    """The last column of docs/reliability.md."""
    faults = [cells for head, cells in rows("docs/reliability.md") if head == "fault"]
    assert len(faults) > 25
    for cells in faults:
        named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", cells[-1])
        assert named, cells[0]
        for file, name in named:
            (path,) = (ROOT / "tests").rglob(file)
            assert unproven([f"{path.relative_to(ROOT)}{name and '::'}{name}"]) == [], cells[0]


@pytest.mark.parametrize(("document", "heading"), promised.POINTS)
def test_every_point_has_a_proof(document: str, heading: str) -> None:
    proofs = promised.POINTS[document, heading]
    found = [" ".join(point.split()) for point in points(document, heading)]
    assert set(found) == set(proofs)
    for point in found:
        assert unproven(proofs[point]) == [], point


@pytest.mark.parametrize(
    "proofs",
    [[], ["tests/project/test_promises.py::test_no"], ["tests/x/test_no.py"], ["said: words that are nowhere"]],
)
def test_what_is_no_proof_is_seen(proofs: list[str]) -> None:
    assert unproven(proofs) != []


def trainings() -> list[str]:
    """Return what follows the program in each command that starts a training, once, with a person's values put in."""
    found = {
        command[match.end() :] for _, command in TYPED if "kubectl" not in command and (match := TRAINS.search(command))
    }
    words = {tuple(shlex.split(after.replace("<folder>", "."))) for after in found if "submitit" not in after}
    return sorted({" ".join(word for word in each if re.match(r"\+?[a-z][\w./]*=", word)) for each in words})


@pytest.mark.parametrize("typed", trainings())
def test_a_command_that_trains_composes(typed: str) -> None:
    """In a sweep for its first job. What is resumed is elsewhere, and the number of ranks is the machine's."""
    words = [word for word in typed.split() if not word.startswith(("resume", "nproc_per_node="))]
    assert settings(*_first_job(words))


def test_an_extra_that_is_installed_is_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    shown = {
        extra for document in DOCUMENTS for extra in re.findall(r"pip install -e '\.\[(\w+)\]'", text_of(document))
    }
    assert {"test", "elastic", "slurm"} <= shown <= set(extras)
