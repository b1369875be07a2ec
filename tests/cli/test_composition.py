"""Overrides become a configuration, or one line per mistake."""

import os
from pathlib import Path

import pytest
import yaml
from launching import accept, two_ranks
from omegaconf import OmegaConf

from ddp_agent.cli import LaunchContext
from ddp_agent.cli.composition import RUN_DIR, RUN_TIME, Configs
from ddp_agent.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.usefixtures("own_environment")


def test_the_context_is_plain_and_resolved(configs: Configs, tmp_path: Path) -> None:
    composed = configs.compose(["+experiment=small", "run_name=a", "hydra.verbose=false"])
    context = composed.checked(accept, two_ranks)
    assert context.cfg == {
        "sync": {"hook": None}, "run_name": "a", "seed": 7, "device": "cpu", "resume": None,
        "nproc_per_node": None, "happens": None, "api_token": None,
    }  # fmt: skip
    assert type(context.cfg["sync"]) is dict
    assert context.choices == {"sync": "allreduce", "experiment": "small"}
    assert context.overrides == ["+experiment=small", "run_name=a"]
    assert (context.run_dir, context.world_size) == (tmp_path / "outputs" / "a", 2)


def test_the_run_directory_may_come_from_the_sweep(configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_DIR, "/sweep/seed=0,lr=1")
    assert configs.compose([]).checked(accept, two_ranks).run_dir == Path("/sweep/seed=0,lr=1")


def test_the_start_is_one_moment(configs: Configs) -> None:
    runs = [configs.compose([]).checked(accept, two_ranks) for _ in range(2)]
    assert runs[0].run_dir == runs[1].run_dir
    assert runs[0].cfg["run_name"] == os.environ[RUN_TIME]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=1", "sed: unknown key, did you mean seed? (known: "),
        ("sync.perid=2", "sync.perid: unknown key, did you mean period? (known: period)"),
        ("snc.period=2", "snc: unknown key, did you mean sync?"),
        ("seed.x=2", "seed.x: unknown key, seed is a value"),
        ("sync=localsgd", "sync: found 'localsgd', did you mean local_sgd? (known: allreduce, local_sgd)"),
        ("+experiment=big", "experiment: found 'big' (known: small)"),
        ("seed=1,2", "seed=1,2: several values; start a run for each with -m, or put a list in brackets"),
        ("seed", "seed: expected key=value"),
        ("seed=[1", "seed=[1: expected key=value"),
        ("~nothing", "~nothing: Could not delete from config"),
        ("seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
        ("seed=???", "seed: Missing mandatory value"),
        ("hydra.run.dir=${nothing}", "hydra.run.dir: Interpolation key 'nothing' not found"),
        ("hydra.mode=MULTIRUN", "hydra.mode: found MULTIRUN"),
    ],
)
def test_a_wrong_override_is_explained_in_one_line(configs: Configs, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configs.compose([override]).checked(accept, two_ranks)
    assert len(refused.value.problems) == 1
    assert refused.value.problems[0].startswith(message)
    assert "\n" not in refused.value.problems[0]


def refuse_seed(context: LaunchContext) -> None:
    raise ConfigError([f"seed: found {context.cfg['seed']}"])


def test_all_problems_are_told_at_once(configs: Configs) -> None:
    typed = ["sync.period=4", "sync.perid=3", "seed=-1", "sed=1"]
    with pytest.raises(ConfigError) as refused:
        configs.compose(typed).checked(refuse_seed, two_ranks)
    keys = [problem.partition(":")[0] for problem in refused.value.problems]
    assert sorted(keys) == ["sed", "seed", "sync.perid"]


def test_what_follows_from_a_wrong_choice_is_not_told(configs: Configs) -> None:
    with pytest.raises(ConfigError) as refused:
        configs.compose(["sync=nothing", "seed=-1"]).checked(refuse_seed, two_ranks)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["sync"]


def refuse_checkpoint(context: LaunchContext) -> None:
    raise CheckpointError("resume: /nowhere holds no complete checkpoint")


def test_a_refused_checkpoint_does_not_hide_what_was_mistyped(configs: Configs) -> None:
    with pytest.raises(ConfigError) as refused:
        configs.compose(["sed=1"]).checked(refuse_checkpoint, two_ranks)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["sed", "resume"]
    with pytest.raises(CheckpointError):
        configs.compose([]).checked(refuse_checkpoint, two_ranks)


def test_a_config_that_does_not_parse_is_refused(configs: Configs) -> None:
    (configs.folder / "experiment" / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"\+experiment=broken"):
        configs.compose(["+experiment=broken"]).checked(accept, two_ranks)


def test_saved_configs_are_unresolved_and_without_secrets(configs: Configs, tmp_path: Path) -> None:
    composed = configs.compose(["seed=3", "api_token=hunter2"])
    composed.checked(accept, two_ranks)
    composed.save(tmp_path)
    saved = {file.stem: yaml.safe_load(file.read_text()) for file in (tmp_path / ".hydra").iterdir()}
    assert saved["config"]["run_name"] == "${run_time:}"
    assert saved["config"]["seed"] == 3
    assert saved["overrides"][0] == "seed=3"
    assert saved["hydra"]["hydra"]["runtime"]["output_dir"] == str(tmp_path)
    assert not any("hunter2" in file.read_text() for file in (tmp_path / ".hydra").iterdir())
    assert "hydra" not in OmegaConf.load(tmp_path / ".hydra" / "config.yaml")


def test_another_folder_of_configs_is_searched(project: Path, tmp_path: Path) -> None:
    extra = tmp_path / "my configs"
    (extra / "experiment").mkdir(parents=True)
    (extra / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 99\n")
    configs = Configs(folder=project / "conf", name="config", extra_folder=extra)
    assert configs.compose(["+experiment=mine"]).checked(accept, two_ranks).cfg["seed"] == 99
