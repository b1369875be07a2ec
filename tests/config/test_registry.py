"""`build`: a node of a config becomes an object of this package, or a list of everything that is wrong with it."""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from configs import files, node
from torch import nn

import ddp_agent.models
from ddp_agent.config import registry as module
from ddp_agent.config.fields import parameters
from ddp_agent.config.registry import PLACES, build, classes, definitions, locate, problems
from ddp_agent.errors import ConfigError
from ddp_agent.models.mlp import MLP
from ddp_agent.sync import DiLoCo
from ddp_agent.training.settings import RUNTIME

SHAPES: dict[str, Any] = {"input_shape": (1, 8, 8), "outputs": 10}
EVERY_YAML = [(group, name) for group in PLACES for name in files(group)]


def refusal(group: str, given: dict[Any, Any], **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        build(group, given, **options)
    return refused.value.problems


def test_values_reach_the_constructor_as_its_annotations_say() -> None:
    sync = build("sync", {"name": "DiLoCo", "period": 7, "outer_lr": 1, "nesterov": False})
    assert isinstance(sync, DiLoCo)
    assert (sync.period, sync.outer_lr, sync.nesterov) == (7, 1.0, False)
    assert isinstance(sync.outer_lr, float)
    assert (sync.outer_momentum, sync.buffers) == (0.6, "average")  # defaults of the class


def test_the_run_gives_what_a_constructor_names_and_nothing_else() -> None:
    model = build("model", {"name": "MLP", "hidden": [5]}, **SHAPES, data_root=Path("unused"))
    assert isinstance(model, MLP)
    assert [tuple(weight.shape) for weight in model.parameters()] == [(5, 64), (5,), (10, 5), (10,)]


def test_a_node_is_left_as_it_was() -> None:
    given = {"name": "MLP", "hidden": [5]}
    build("model", given, **SHAPES)
    assert given == {"name": "MLP", "hidden": [5]}


def test_everything_wrong_with_a_node_is_told_at_once() -> None:
    given = {"name": "DiLoCo", "perod": 4, "outer_lr": -1, "nesterov": "yes", "buffers": "mean", 5: 6}
    assert refusal("sync", given) == [
        "sync.perod: unknown key, did you mean period? "
        "(known: buffers, cadence, nesterov, optimizer_state, outer_lr, outer_momentum, period)",
        "sync.5: unknown key (known: buffers, cadence, nesterov, optimizer_state, outer_lr, outer_momentum, period)",
        "sync.buffers: found 'mean', expected one of average, rank0, local, recalibrate",
        "sync.period: missing, expected an integer >= 1",
        "sync.outer_lr: found -1, expected a finite number >= 0",
        "sync.nesterov: found 'yes', expected true or false",
    ]


def test_what_the_run_sets_is_refused_in_a_node() -> None:
    given = {"name": "MLP", "hidden": [5], "outputs": 3}
    expected = ["model.outputs: found 3, but the run itself sets it; leave it out"]
    assert refusal("model", given, **SHAPES) == expected
    assert problems("model", given, runtime=["input_shape", "outputs"]) == expected


def test_what_the_run_did_not_give_is_missing() -> None:
    assert refusal("model", {"name": "MLP", "hidden": [5]}, outputs=3) == [
        "model.input_shape: missing, expected a list, each an integer"
    ]


def test_what_the_run_sets_is_not_offered_for_a_misspelt_key() -> None:
    assert problems("model", {"name": "MLP", "output": 3, "hidden": []}, runtime=["input_shape", "outputs"]) == [
        "model.output: unknown key (known: hidden)"
    ]


def test_state_of_an_object_is_no_parameter() -> None:
    assert refusal("sync", {"name": "DiLoCo", "period": 1, "syncs": 3})[0].startswith("sync.syncs: unknown key")


@pytest.mark.parametrize("name", [None, 5, ["MLP"]])
def test_a_name_must_be_a_word(name: Any) -> None:
    assert refusal("model", {"name": name}) == [f"model.name: found {name!r}, expected the name of a class"]


def test_an_unknown_name_lists_what_there_is() -> None:
    assert refusal("reducer", {"name": "Dens"}) == [
        f"reducer.name: found 'Dens', did you mean Dense? (known: {', '.join(sorted(classes('reducer')))})"
    ]
    assert refusal("reducer", {"name": "XYZ"})[0].startswith("reducer.name: found 'XYZ' (known: Cast, ")


@pytest.mark.parametrize("name", ["Reducer", "_Done", "Comm", "AllReduce"])
def test_helpers_base_classes_and_other_groups_are_no_choice(name: str) -> None:
    assert refusal("reducer", {"name": name})[0].startswith(f"reducer.name: found {name!r}")


def test_a_constructors_own_refusal_names_the_group() -> None:
    given = node("optimizer", "sgd", momentum=0.0)
    assert refusal("optimizer", given) == [
        "optimizer: nesterov: found true with momentum 0, expected a momentum above 0"
    ]


@pytest.mark.parametrize(("group", "name"), EVERY_YAML)
def test_every_yaml_says_everything_that_its_class_takes(group: str, name: str) -> None:
    """All values stand in files: what a run used can be read there, and changed without looking at the code."""
    given = node(group, name)
    runtime = set(RUNTIME.get(group, ()))
    assert problems(group, given, runtime=runtime) == []
    assert set(parameters(locate(group, given["name"]))) - runtime == set(given) - {"name"}


@pytest.mark.parametrize("group", PLACES)
def test_every_class_can_be_chosen_and_has_a_line_for_help(group: str) -> None:
    described = definitions(group)
    assert {node(group, name)["name"] for name in files(group)} == set(described)
    assert [name for name, (_, line) in described.items() if not re.fullmatch(r"[^\n]{15,120}", line)] == []


def test_classes_are_found_where_they_are_defined() -> None:
    for group in PLACES:
        for name, defined_in in classes(group).items():
            assert locate(group, name).__module__ == defined_in


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package with an empty folder of models."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    monkeypatch.setattr(ddp_agent.models, "__path__", [str(folder)])
    definitions.cache_clear()
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]
    definitions.cache_clear()


PIECE = '''
from torch import nn
class Tiny(nn.Module):
    """One layer."""
    def __init__(self, *, outputs: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, outputs)
class _Helper: ...
'''


def test_a_new_file_is_a_new_choice_and_no_other_file_is_imported(models: Path) -> None:
    (models / "tiny.py").write_text(PIECE)
    (models / "broken.py").write_text('class Broken:\n    """Never."""\nraise AssertionError("imported")')
    assert definitions("model") == {
        "Broken": ("ddp_agent.models.broken", "Never."),
        "Tiny": ("ddp_agent.models.tiny", "One layer."),
    }
    assert build("model", {"name": "Tiny", "width": 3}, **SHAPES).layer.weight.shape == (10, 3)
    with pytest.raises(AssertionError, match="imported"):  # the control: an import would have been noticed
        build("model", {"name": "Broken"})


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of someone else's, which leaves a mark when it is imported."""
    (tmp_path / "foreign_pieces").mkdir()
    (tmp_path / "foreign_pieces" / "__init__.py").write_text("")
    (tmp_path / "foreign_pieces" / "nets.py").write_text(
        PIECE + "function = print\nfrom subprocess import Popen\n_Hidden = Tiny\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "foreign_pieces.nets"
    for name in [name for name in sys.modules if name.startswith("foreign_pieces")]:
        del sys.modules[name]


def test_another_package_is_only_reached_when_it_is_trusted(foreign: str) -> None:
    given = {"name": f"{foreign}:Tiny", "width": 3}
    for trusted in ([], ["foreign"], ["foreign_pieces_too"]):
        assert refusal("model", given, trusted_packages=trusted, **SHAPES) == [
            f"model.name: found '{foreign}:Tiny', but trusted_packages does not list 'foreign_pieces'"
        ]
    assert "foreign_pieces" not in sys.modules
    assert isinstance(build("model", given, trusted_packages=["foreign_pieces"], **SHAPES), nn.Module)
    assert refusal("model", {**given, "width": "3"}, trusted_packages=["foreign_pieces"], **SHAPES) == [
        "model.width: found '3', expected an integer"
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (":Missing", "which cannot be imported: module 'foreign_pieces.nets' has no attribute 'Missing'"),
        (":function", "expected a class"),
        ("x:Tiny", "which cannot be imported: No module named 'foreign_pieces.netsx'"),
        (":Popen", "which is subprocess:Popen; expected a class that foreign_pieces itself defines"),
        (":_Hidden", "expected module:Class of public names"),
        ("._hidden:Tiny", "expected module:Class of public names"),
        (":__class__", "expected module:Class of public names"),
        (":Tiny.__init__", "expected module:Class of public names"),
        (":Tiny:Tiny", "expected module:Class of public names"),
    ],
)
def test_a_trusted_name_that_leads_nowhere(foreign: str, name: str, reason: str) -> None:
    found = f"{foreign}{name}"
    assert refusal("model", {"name": found}, trusted_packages=["foreign_pieces"]) == [
        f"model.name: found {found!r}, {reason}"
    ]


def reachable(package: str) -> Iterator[tuple[str, object]]:
    """Every attribute of every module of a package that is loaded, by the name that a configuration would use."""
    for name, loaded in sorted(sys.modules.items()):
        if name.partition(".")[0] == package and loaded is not None:
            for attribute, value in vars(loaded).items():
                yield f"{name}:{attribute}", value


@pytest.mark.parametrize("group", sorted(PLACES))
def test_a_configuration_reaches_the_classes_of_its_group_and_no_other_attribute(group: str) -> None:
    """Of everything that the interpreter holds: modules, functions, classes, private names, builtins."""
    packages = ("builtins", "os", "posix", "subprocess", "importlib", "ddp_agent", "torch")
    attributes = dict(pair for package in packages for pair in reachable(package))
    names = {*attributes, *(name.partition(":")[2] for name in attributes), "", ":", "os:", ":abort", "a.b:c", "../x"}
    assert {"os:abort", "subprocess:Popen", "builtins:eval", "torch.hub:load"} <= names
    found = set()
    for name in names:
        with suppress(ConfigError):
            found.add(locate(group, name))
    assert found == {locate(group, name) for name in definitions(group) if name in names}
    assert all(piece.__module__.startswith("ddp_agent.") for piece in found)
    assert found or group in ("model", "dataset"), "nothing was reached, so nothing was tried"


def test_definitions_skip_what_is_abstract_or_private() -> None:
    source = (module.PACKAGE / "training" / "schedules.py").read_text(encoding="utf-8")
    written = {statement.name for statement in ast.parse(source).body if isinstance(statement, ast.ClassDef)}
    assert written - set(definitions("schedule")) == {"Schedule"}
