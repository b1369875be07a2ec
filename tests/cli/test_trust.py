"""A configuration names no code, holds no bomb and chooses no place outside, be it a file's or typed."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from configs import CONF
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from ddp_agent.cli import sweep
from ddp_agent.cli.composition import Configs, LaunchContext
from ddp_agent.cli.trust import content_problems
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


# What a file may set: an allow-list


def keys_of(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a config, at every depth."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        yield (*path, str(key))
        yield from keys_of(value, (*path, str(key)))


def keys_of_hydra() -> set[tuple[str, ...]]:
    """Every key that Hydra's node has by itself, and with each installed plugin."""
    Plugins.instance()

    def stored(folder: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, entry in folder.items():
            if isinstance(entry, dict):
                yield from stored(entry, (*path, name))
            else:
                where = () if (path, name) == ((), "config.yaml") else path
                yield from keys_of(OmegaConf.to_container(entry.node, resolve=False), where)

    composed: Any = OmegaConf.to_container(Configs(folder=CONF, name="config").compose([]).cfg.hydra, resolve=False)
    return {*stored(ConfigStore.instance().repo["hydra"], ()), *keys_of(composed)}


SAFE = [1, 0.5, None, "a_word", "a/path", False]
DANGEROUS = [
    "a b",
    "${oc.env:HOME}",
    "a\nb",
    "$(x)",
    ["a b"],
    {"_target_": "os.abort"},
    {"x": 1},
    "ext://os.abort",
    ["${x}"],
]
OF_A_RUN = {
    "mode", "run.dir", "sweep.dir", "sweep.subdir", "job.name", "job.chdir",
    "job.config.override_dirname.kv_sep", "job.config.override_dirname.item_sep",
    "job.config.override_dirname.exclude_keys",
    *(f"launcher.{key}" for key in (
        "timeout_min", "array_parallelism", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node",
        "max_num_timeout", "signal_delay_s", "partition", "qos", "account", "constraint",
    )),
    *(f"sweeper.{key}" for key in (
        "n_trials", "n_jobs", "max_batch_size", "max_failure_rate", "study_name", "direction", "sampler.seed",
        "sampler.n_startup_trials",
    )),
}  # fmt: skip


def set_by_a_file(path: tuple[str, ...], value: Any) -> list[str]:
    for key in reversed(path):
        value = {key: value}
    return content_problems({"hydra": value}, typed=())


def test_of_every_key_of_hydras_node_a_file_sets_what_a_run_needs_and_no_other() -> None:
    keys = keys_of_hydra()
    assert {("job", "env_set"), ("launcher", "setup"), ("sweeper", "storage"), ("callbacks",), ("searchpath",)} <= keys
    accepted = {path for path in keys if any(not set_by_a_file(path, value) for value in [*SAFE, "="])}
    assert {".".join(path) for path in accepted} == OF_A_RUN
    directories = {("run", "dir"), ("sweep", "dir"), ("sweep", "subdir")}  # compared with the current one afterwards
    for path in keys - directories - {("sweeper", "params")}:
        assert all(set_by_a_file(path, value) for value in DANGEROUS), path


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        *((key, True) for key in ("sync", "sync.period", "+model.width", "++a/b.c")),
        *((key, False) for key in ("trusted_packages", "+trusted_packages", "resume", "hydra.job.env_set.A", "hydra")),
        *((key, False) for key in ("+hydra.callbacks.x", "hydra/launcher", "model@hydra.job", "a=1 resume", "~sync")),
    ],
)
def test_a_file_sweeps_over_keys_that_it_may_set(key: str, allowed: bool) -> None:
    assert (set_by_a_file(("sweeper", "params", key), "1,2") == []) == allowed


TRUSTING = {
    "experiment/theirs.yaml": (
        "# @package _global_\ndefaults: [override /model: theirs]\ntrusted_packages: [subprocess]"
    ),
    "model/theirs.yaml": "name: subprocess:Popen\nargs: [touch, it-ran]",
}
WAYS_IN = {
    "a package header": {"experiment/theirs.yaml": "# @package hydra.job\nenv_set: {PYTHONPATH: theirs}"},
    "a package in the defaults": {
        "experiment/theirs.yaml": "# @package _global_\ndefaults: [/other@hydra.job: x]",
        "other/x.yaml": "env_copy: [HOME]",
    },
    "an interpolated node": {
        "experiment/theirs.yaml": "# @package _global_\nx: {job: {env_set: {A: b}}}\nhydra: ${x}"
    },
    "an installed config elsewhere": {
        "experiment/theirs.yaml": "# @package _global_\ndefaults: [/hydra/launcher@hydra.callbacks.x: basic]"
    },
    "a launcher of their own": {
        "experiment/theirs.yaml": "# @package _global_\ndefaults: [override /hydra/launcher: theirs]",
        "hydra/launcher/theirs.yaml": "setup: [touch it-ran]",
    },
    "values that a sweep would type": {
        "experiment/theirs.yaml": "# @package _global_\nhydra: {sweeper: {params: {trusted_packages: '[subprocess]'}}}"
    },
    "a checkpoint to continue": {"experiment/theirs.yaml": "# @package _global_\nresume: outputs/yours"},
    "trust": TRUSTING,
}  # fmt: skip


def planted(folder: Path, files: Mapping[str, str]) -> Configs:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return Configs(folder=CONF, name="config", extra_folder=folder)


@pytest.mark.parametrize("way", WAYS_IN)
def test_no_file_reaches_what_only_counts_when_typed(way: str, tmp_path: Path) -> None:
    configs = planted(tmp_path, WAYS_IN[way])
    with pytest.raises(ConfigError, match=r"a file must not (set|choose)"):
        configs.compose(["+experiment=theirs"])


@pytest.mark.parametrize("hydra", ["{searchpath: ['pkg://planted']}", "${x}\nx: {searchpath: ['pkg://planted']}"])
def test_a_search_path_is_refused_before_it_is_imported(
    hydra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("open('it-ran', 'w')")
    (tmp_path / "config.yaml").write_text(f"hydra: {hydra}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"which a file must not set"):
        Configs(folder=tmp_path, name="config").compose([])
    assert not (tmp_path / "it-ran").exists()


def test_what_is_typed_counts(tmp_path: Path) -> None:
    """A key that the file sets too is the typed one."""
    configs = planted(tmp_path, TRUSTING)
    typed = ["+experiment=theirs", "trusted_packages=[mine]", "hydra/launcher=submitit_slurm"]
    context = configs.compose([*typed, "hydra.launcher.setup=[module load cuda]"]).checked(accept, lambda _: 2)
    assert context.cfg["trusted_packages"] == ["mine"]


def test_every_job_of_a_sweep_is_checked_before_one_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra sets a job's environment and makes its directory before our code is called."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    configs = planted(
        tmp_path / "theirs",
        {
            "experiment/good.yaml": "# @package _global_\nseed: 3",
            "experiment/env.yaml": "# @package _global_\nhydra: {job: {env_set: {PYTHONPATH: theirs}}}",
            "experiment/place.yaml": "# @package _global_\nhydra: {sweep: {subdir: ../../../there}}",
        },
    )
    for bad in ("env", "place"):
        with pytest.raises(ConfigError, match=r"hydra\.(job\.env_set\.PYTHONPATH|sweep\.subdir): found"):
            sweep.run(configs, ["/bin/false"], [f"+experiment=good,{bad}"])
    assert not list(tmp_path.glob("**/job.json"))
    assert not (tmp_path / "there").exists()


def test_a_link_of_theirs_leads_a_run_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's directory is compared after its links and interpolations. `outputs` may be a link to a larger disk."""
    for folder in ("here", "disk", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    os.symlink(tmp_path / "elsewhere", "theirs")
    os.symlink(tmp_path / "disk", "outputs")
    theirs = "# @package _global_\nplace: {}\nhydra: {{run: {{dir: '${{place}}/x'}}}}"
    for place in ("theirs", "theirs/../..", "..", "/etc"):
        configs = planted(tmp_path / "conf", {"experiment/theirs.yaml": theirs.format(place)})
        with pytest.raises(ConfigError, match=r"hydra\.run\.dir: found \$\{place\}/x, expected a directory below"):
            configs.compose(["+experiment=theirs"]).checked(accept, lambda _: 2)
    configs = planted(tmp_path / "conf", {"experiment/theirs.yaml": theirs.format("outputs")})
    configs.compose(["+experiment=theirs"]).checked(accept, lambda _: 2)


def test_a_file_that_is_no_file_is_not_waited_for(conf: Path) -> None:
    os.mkfifo(conf / "experiment" / "theirs.yaml")
    (found,) = refusals(folder=conf)
    assert found == f"{conf / 'experiment' / 'theirs.yaml'}: is a FIFO, expected a regular file"
