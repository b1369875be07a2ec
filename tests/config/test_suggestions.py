"""Suggestions for what was typed wrong: one short line that names the right key or choice."""

from pathlib import Path

import pytest
from configs import files

from ddp_agent.cli import sweep
from ddp_agent.cli.composition import Configs
from ddp_agent.config.suggestions import LISTED, nearest, unknown
from ddp_agent.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"


def refusal(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        Configs(folder=CONF, name="config").compose(overrides).checked(lambda context: None, lambda cfg: 1)
    return error.value.problems


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("lr=0.1", "optimizer.lr"),
        ("learning_rate=0.1", "optimizer.lr"),
        ("momentum=0.9", "optimizer.momentum"),
        ("period=4", "sync.period"),
        ("H=4", "sync.period"),
        ("perod=4", "sync.period"),
        ("hiden=[4]", "model.hidden"),
        ("batch_size=4", "global_batch_size"),
        ("epoch=4", "epochs"),
        ("steps=4", "max_steps"),
        ("modle=cnn", "model"),
        ("optimizer.learning_rate=1", "lr"),
        ("optimizer.period=4", "sync.period"),
        ("optimizer.seed=4", "seed"),
        ("model.hiden=[4]", "hidden"),
        ("sync=localsgd", "local_sgd"),
        ("sync=DiLoCo", "diloco"),
        ("sync=ddp", "allreduce"),
        ("optimizer=Adam", "adamw"),
    ],
)
def test_the_right_word_is_suggested_in_one_short_line(typed: str, right: str) -> None:
    (line,) = refusal(typed)
    assert line.startswith(typed.partition("=")[0]) and f"did you mean {right}?" in line
    assert len(line.split(",")) <= LISTED + 2


def test_a_key_of_other_choices_names_the_choice_and_those_that_have_it() -> None:
    (line,) = refusal("sync.period=3")
    assert line.startswith("sync.period: unknown key: AllReduce has no period; sync=local_sgd, ")
    (line,) = refusal("sync=local_sgd", "sync.outer_lr=1")
    assert "LocalSGD has no outer_lr; sync=" in line and "diloco" in line and line.endswith(" have it")
    assert unknown("reducer.ratio", [], "Int8") == "unknown key: Int8 has no ratio; reducer=topk has it"


def test_a_sweep_names_the_job_that_lacks_the_key() -> None:
    with pytest.raises(ConfigError) as error:
        sweep._checked(Configs(folder=CONF, name="config"), ["sync=allreduce,local_sgd", "sync.period=8"])
    problem, job = error.value.problems
    assert problem.startswith("sync.period: unknown key: AllReduce has no period; sync=local_sgd, ")
    assert "first job: sync=allreduce sync.period=8." in job and "a sweep for the others" in job


def test_a_word_that_is_near_to_none_gets_no_suggestion() -> None:
    assert refusal("zzz=1") == ["zzz: unknown key (--cfg job prints all keys)"]
    assert nearest("zzz", files("sync")) == ""
