"""The configuration: every file composes and is kept as given, and what its parts ask of each other is checked."""

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from configs import CONF, config, files, groups, parsed, refusal, settings
from torch.utils.data import TensorDataset

from ddp_agent.cli.composition import Configs
from ddp_agent.config.fields import parameters
from ddp_agent.config.options import Options
from ddp_agent.config.registry import PLACES
from ddp_agent.data.task import Task
from ddp_agent.errors import CheckpointError, ConfigError
from ddp_agent.sync import DiLoCo
from ddp_agent.training.session import share_of
from ddp_agent.training.settings import GROUPS, Settings, check_against_data, parse

EVERY_YAML = [(group, name) for group in groups() for name in files(group)]
PAIRS = list(itertools.product(files("sync"), files("reducer")))


# What is right


def test_the_default_is_kept_as_it_is_written() -> None:
    found = settings()
    assert found.cfg.keys() == {*parameters(Options), *GROUPS}
    assert found.choices == {
        "model": "mlp",
        "dataset": "digits",
        "slicing": "shared",
        "cadence": "fixed",
        "sync": "allreduce",
        "reducer": "dense",
        "optimizer": "sgd",
        "schedule": "constant",
    }
    assert_kept(found)


@pytest.mark.parametrize(("group", "name"), EVERY_YAML)
def test_every_yaml_composes_parses_and_is_kept(group: str, name: str, tmp_path: Path) -> None:
    chosen = [f"+{group}={name}" if group == "experiment" else f"{group}={name}"]
    if group in ("reducer", "cadence"):
        chosen.append("sync=parameter_update")  # which takes any
    found = settings(*chosen, f"data_root='{tmp_path}'", world_size=2)
    assert found.choices[group] == name
    assert_kept(found)


def test_a_piece_that_is_no_config_file_is_labelled_with_its_name(tmp_path: Path) -> None:
    """A model of another package must not go by the name of the default model in summary, report and plan."""
    trusted = "trusted_packages=[collections]"
    foreign = ("model.name=collections:OrderedDict", "~model.hidden", trusted)
    found = settings(*foreign, "sync=diloco", "reducer=bf16", "reducer.name=Int8", "~reducer.dtype")
    labels = [found.label(group) for group in ("model", "reducer", "sync")]
    assert labels == ["collections:OrderedDict", "Int8", "diloco"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tiny.yaml").write_text("name: collections:OrderedDict\n")
    configs = Configs(folder=CONF, name="config", extra_folder=tmp_path)
    context = configs.compose(["model=tiny", trusted]).checked(lambda context: None, lambda cfg: 1)
    assert parse(context.cfg, choices=context.choices, world_size=1).label("model") == "tiny"


def assert_kept(found: Settings) -> None:
    """Nothing was adjusted: options and objects hold what the configuration says."""
    assert {key: plain(value) for key, value in vars(found.options).items()} == {
        key: plain(found.cfg[key]) for key in parameters(Options)
    }
    for group in set(GROUPS) - {"model"}:
        given = {key: value for key, value in found.cfg[group].items() if key != "name"}
        assert {key: plain(getattr(getattr(found, group), key)) for key in given} == {
            key: plain(value) for key, value in given.items()
        }
    assert found.model == found.cfg["model"]


def plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def test_no_group_is_without_a_default_or_files() -> None:
    assert set(GROUPS) == set(PLACES)
    assert [group for group in GROUPS if not files(group)] == []
    assert not list(CONF.glob("*.yml")) + list(CONF.glob("*/*.yml")), "Hydra does not see these"


def test_what_is_typed_arrives() -> None:
    found = settings(
        "sync=diloco", "sync.period=3", "optimizer.lr=1", "model.hidden=[7]", "run_name=mine", "target=0.9"
    )
    assert isinstance(found.sync, DiLoCo)
    assert (found.sync.period, found.optimizer.lr, found.model["hidden"]) == (3, 1.0, [7])
    assert (found.options.run_name, found.options.target) == ("mine", 0.9)


def test_parsing_changes_nothing() -> None:
    cfg = config("model.hidden=[3]", "data_root=somewhere")
    before = copy.deepcopy(cfg)
    assert parsed(cfg).cfg == before == cfg


def test_a_part_is_called_by_its_file_or_else_by_its_class() -> None:
    assert settings("reducer=bf16").label("reducer") == "bf16"
    assert parsed(config(reducer="bf16")).label("reducer") == "Cast"


@pytest.mark.parametrize("sync", ["local_sgd", "parameter_update"])
def test_the_articles_case_is_right_for_its_ten_nodes(sync: str) -> None:
    found = settings("+experiment=article", f"sync={sync}", world_size=10)
    assert (found.label("dataset"), found.label("model"), found.label("sync")) == ("article", "linear", sync)
    assert share_of(found.options, 0, 10).micro_batch * 10 == found.options.global_batch_size


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(1, None, 10), (3, None, 30), (None, 7, 7), (3, 7, 7)],
)
def test_max_steps_wins_over_epochs(epochs: int | None, max_steps: int | None, expected: int) -> None:
    options = parsed(config(f"epochs={epochs or 'null'}", f"max_steps={max_steps or 'null'}")).options
    assert options.total_steps(10 * options.global_batch_size) == expected


def test_epochs_cover_every_sample() -> None:
    options = parsed(config("epochs=3")).options  # batches of 64
    assert [options.total_steps(samples) for samples in (64, 65, 85, 86)] == [3, 4, 4, 5]


@pytest.mark.parametrize(("world_size", "accumulation", "expected"), [(1, 1, 64), (2, 1, 32), (4, 8, 2)])
def test_micro_batch_is_the_ranks_share(world_size: int, accumulation: int, expected: int) -> None:
    found = parsed(config(f"accumulation_steps={accumulation}"), world_size)
    assert share_of(found.options, 0, world_size).micro_batch == expected


# Modes and reducers


@pytest.mark.parametrize(("sync", "reducer"), PAIRS)
def test_a_reducer_that_does_not_fit_is_refused_with_a_remedy_that_works(sync: str, reducer: str) -> None:
    exact = parsed(config(sync=sync))
    lossy = parsed(config("sync.combine=mean", sync="parameter_update", reducer=reducer))
    if exact.sync.traits.sends == "parameters" and (not lossy.reducer.traits.exact or lossy.reducer.traits.needs_zeros):
        (problem,) = refusal(sync=sync, reducer=reducer)
        assert problem.startswith(f"reducer: {type(exact.sync).__name__} sends raw parameters")
        assert "use reducer=dense, or sync=parameter_update sync.combine=mean" in problem
        parsed(config(sync=sync, reducer="dense"))
    elif exact.sync.traits.averages_in_backward and lossy.reducer.traits.remembers and reducer != "powersgd":
        (problem,) = refusal(sync=sync, reducer=reducer)
        assert problem.startswith(f"reducer: {type(exact.sync).__name__} averages DDP's buckets")
        assert "reducer=bf16" in problem
        parsed(config(sync=sync, reducer="bf16"))
    else:
        found = parsed(config(sync=sync, reducer=reducer))
        assert (repr(found.sync), found.reducer) == (repr(exact.sync), lossy.reducer)


def test_the_pairs_include_both_kinds() -> None:
    refused = []
    for sync, reducer in PAIRS:
        try:
            parsed(config(sync=sync, reducer=reducer))
        except ConfigError:
            refused.append((sync, reducer))
    assert {("local_sgd", "bf16"), ("post_local_sgd", "fp16"), ("allreduce", "topk")} <= set(refused)
    assert not {("allreduce", "bf16"), ("diloco", "fp16"), ("parameter_update", "int8")} & set(refused)


# Values that are wrong together


@pytest.mark.parametrize(
    ("batch", "accumulation", "world_size", "near"), [(63, 1, 2, 64), (64, 3, 2, 66), (64, 1, 10, 60), (1, 1, 3, 3)]
)
def test_a_batch_that_ranks_cannot_share_is_refused(batch: int, accumulation: int, world_size: int, near: int) -> None:
    typed = [f"global_batch_size={batch}", f"accumulation_steps={accumulation}"]
    assert refusal(*typed, world_size=world_size) == [
        f"global_batch_size: found {batch}, expected a multiple of {world_size} ranks x "
        f"{accumulation} accumulation_steps, such as {near}"
    ]
    parsed(config(f"global_batch_size={near}", typed[1]), world_size)


def test_a_run_needs_an_end() -> None:
    assert refusal("epochs=null") == ["epochs: found null, and max_steps too; expected one of them"]


def test_parts_longer_than_max_steps_are_refused() -> None:
    typed = ["max_steps=50", "sync.switch_step=51", "schedule.warmup_steps=60"]
    assert refusal(*typed, sync="post_local_sgd", schedule="cosine") == [
        "sync.switch_step: found 51, expected at most the run's 50 steps",
        "schedule.warmup_steps: found 60, expected at most the run's 50 steps",
    ]
    parsed(config("max_steps=50", "sync.switch_step=50", "schedule.warmup_steps=50", sync="post_local_sgd"))


def task(train: int, test: int = 5) -> Task:
    original = parsed(config(dataset="article")).dataset.load()

    def first(count: int) -> TensorDataset:
        return TensorDataset(*original.data.train[:count])

    data = dataclasses.replace(original.data, train=first(train), test=first(test))
    resized: Task = dataclasses.replace(original, data=data)
    return resized


def data_refusal(found: Settings, *, train: int, test: int = 5, world_size: int = 2) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        check_against_data(found, task(train, test), world_size)
    return refused.value.problems


def test_parts_longer_than_the_epochs_are_refused_once_the_data_is_known() -> None:
    typed = ["epochs=2", "global_batch_size=10", "sync.switch_step=21", "schedule.warmup_steps=99"]
    found = parsed(config(*typed, sync="post_local_sgd"))
    assert data_refusal(found, train=100) == [
        "sync.switch_step: found 21, expected at most the run's 20 steps",
        "schedule.warmup_steps: found 99, expected at most the run's 20 steps",
    ]
    check_against_data(parsed(config(*typed[:2], "sync.switch_step=20", sync="post_local_sgd")), task(100), 2)


def test_a_trace_longer_than_the_run_is_refused() -> None:
    typed = ["epochs=2", "global_batch_size=10"]
    assert data_refusal(parsed(config(*typed, "profile_steps=14")), train=100) == [
        "profile_steps: found 14 after 7 that are not traced, expected at most the run's 20 steps together"
    ]
    check_against_data(parsed(config(*typed, "profile_steps=13")), task(100), 2)


def test_fewer_samples_than_a_batch_or_ranks_are_refused() -> None:
    found = parsed(config("global_batch_size=8"), world_size=4)
    check_against_data(found, task(8), world_size=4)
    assert data_refusal(found, train=7, world_size=4) == [
        "global_batch_size: found 8, expected at most the 7 training samples"
    ]
    assert data_refusal(found, train=3, test=0, world_size=4) == [
        "global_batch_size: found 8, expected at most the 3 training samples",
        "nproc_per_node: found 4 ranks for 3 training samples, expected fewer ranks",
        "dataset: found no test samples",
    ]


def test_resume_needs_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert refusal(f"resume={missing}") == [
        f"resume: found '{missing}', which is no directory; expected the directory of an earlier run"
    ]
    with pytest.raises(CheckpointError, match=r"resume: .*checkpoints holds no complete checkpoint") as refused:
        parsed(config(f"resume={tmp_path}"))
    assert refused.value.exit_code == 3
