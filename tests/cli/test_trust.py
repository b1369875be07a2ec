"""A configuration names no code, holds no bomb and chooses no place outside, be it a file's or typed."""

import shutil
from pathlib import Path

import pytest
from configs import CONF

from ddp_agent.cli.composition import Configs, LaunchContext
from ddp_agent.errors import ConfigError

PLANTED = "hydra.callbacks.x._target_: found 'os.abort', which would be run; only Hydra's own plugins are named so"


def accept(context: LaunchContext) -> None:
    pass


def refusals(*overrides: str, folder: Path = CONF, extra: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        Configs(folder=folder, name="config", extra_folder=extra).compose(overrides).checked(accept, lambda _: 2)
    return refused.value.problems


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["+hydra.callbacks.x._target_=os.abort"], PLANTED),
        (
            [r"+text='{x: {_target_: os.abort}}'", r"hydra.callbacks='${oc.create:${text}}'"],
            PLANTED,
        ),
        (
            [r"+text='{_target_: os.abort}'", r"+hydra.callbacks.x='${oc.create:${text}}'"],
            PLANTED,
        ),
        (["hydra.launcher._target_=os.abort"], "hydra.launcher._target_: found 'os.abort', which would be run"),
        (["+hydra.sweeper.x._target_=os.abort"], "hydra.sweeper.x._target_: found 'os.abort', which would be run"),
        (["+hydra.job_logging.handlers.a.class=os.abort"], "hydra.job_logging.handlers.a.class: found 'os.abort'"),
        (
            ["+hydra.hydra_logging.x=ext://os.abort"],
            "hydra.hydra_logging.x: found 'ext://os.abort', expected ext://sys",
        ),
        (
            ["hydra/sweeper=optuna", "hydra.sweeper.custom_search_space=os.abort"],
            "hydra.sweeper.custom_search_space: it names a function",
        ),
    ],
)
def test_what_hydra_would_run_is_refused(overrides: list[str], problem: str) -> None:
    (found,) = refusals(*overrides)
    assert found.startswith(problem)


@pytest.mark.parametrize("overrides", [["hydra/job_logging=default"], ["hydra/sweeper=optuna"]])
def test_hydras_own_plugins_are_welcome(overrides: list[str]) -> None:
    Configs(folder=CONF, name="config").compose(overrides).checked(accept, lambda _: 2)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return shutil.copytree(CONF, tmp_path / "conf")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b]\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model:\n  _target_: os.abort\n", "found _target_, but objects are named by `name:` here"),
        ('hydra: {callbacks: {x: {"_targ\\x65t_": os.abort}}}\n', "found _target_, but objects are named by"),
        ("a: ${oc.create:'{_target_: os.abort}'}\n", "found _target_, but objects are named by"),
        (BOMB, "found the alias *a, expected an interpolation ${…}"),
        ("a: " + "[" * 60 + "]" * 60, "found values nested more than 50 deep"),
    ],
)
def test_a_file_is_looked_through_before_any_is_chosen(text: str, problem: str, conf: Path) -> None:
    (conf / "experiment" / "theirs.yaml").write_text(text)
    (found,) = refusals(folder=conf)
    assert found.startswith(f"{conf / 'experiment' / 'theirs.yaml'}: {problem}")
    assert refusals(extra=conf) == [found]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("run: {dir: /etc/x}", "hydra.run.dir: found /etc/x, expected a directory below the current one"),
        ("run: {dir: outputs/../../x}", "hydra.run.dir: found outputs/../../x, expected a directory below"),
        ("sweep: {dir: ../x}", "hydra.sweep.dir: found ../x, expected a directory below the current one"),
        ("sweep: {subdir: '../${hydra.job.num}'}", "hydra.sweep.subdir: found ../${hydra.job.num}, expected a"),
    ],
)
def test_a_file_cannot_choose_a_place_outside(lines: str, problem: str, conf: Path) -> None:
    (conf / "experiment" / "theirs.yaml").write_text(f"# @package _global_\nhydra:\n  {lines}\n")
    (found,) = refusals("+experiment=theirs", folder=conf)
    assert found.startswith(problem)


def test_whoever_types_may_choose_any_place(tmp_path: Path) -> None:
    configs = Configs(folder=CONF, name="config")
    typed = [f"hydra.run.dir={tmp_path}", f"hydra.sweep.dir={tmp_path}"]
    assert configs.compose(typed).checked(accept, lambda _: 2).run_dir == tmp_path


# What Hydra and the parsers below it stumble over, once with a traceback each.
NEVER_COMPOSED = [
    *("", "+", "seed", "seed=[[[", "seed=" + "9" * 5000, "seed=" + "[" * 3000, "+" + "a." * 3000 + "a=1", "seed=\x00"),
    *("hydra=1", "hydra.run=1", "~hydra", "hydra.runtime=null", "sync=null", "sync=[a,b]", "seed=glob(*)", "~seed=9"),
    *("seed=${", "+experiment=\x00"),
]


def test_whatever_is_typed_is_explained_in_a_line() -> None:
    problems = Configs(folder=CONF, name="config").compose(NEVER_COMPOSED).problems
    assert len(problems) == len(NEVER_COMPOSED)
    assert all("\n" not in problem and ": " in problem for problem in problems)


@pytest.mark.parametrize(
    "typed",
    [
        "seed=${seed}",
        "seed=${oc.env:NOBODY}",
        'seed=${oc.decode:"[1"}',
        "run_name=${run_time:1}",
        "hydra.mode=MULTIRUN",
    ],
)
def test_what_cannot_be_resolved_is_explained(typed: str) -> None:
    (problem,) = refusals(typed)
    assert problem.startswith(f"{typed.partition('=')[0]}: ")


def test_a_name_inside_of_hydras_node_may_be_an_interpolation() -> None:
    Configs(folder=CONF, name="config").compose(["hydra.job.name=${nobody}"]).checked(accept, lambda _: 2)
