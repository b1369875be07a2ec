"""Configurations of any values: each becomes a run that could start, or is refused in words. Nothing is started."""

import copy
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import fuzzing
import pytest
import torch
from configs import CONF, config, files, node
from hypothesis import given
from hypothesis import strategies as st
from loops import Loop, refusal
from torch.utils.data import TensorDataset

from ddp_agent.cli import relaunch
from ddp_agent.cli.composition import Configs
from ddp_agent.config import memory
from ddp_agent.data.classification import accuracy
from ddp_agent.data.task import Data, Objective, Task
from ddp_agent.distributed.consistency import config_sha256
from ddp_agent.errors import ConfigError, RefusedError
from ddp_agent.sync.cadences.base import CadenceContext
from ddp_agent.training.checkpoints import load_state
from ddp_agent.training.model import create_model
from ddp_agent.training.results import hparams
from ddp_agent.training.settings import GROUPS, check_against_data, parse

SAMPLES = 90


def task(kind: str) -> Task:
    """Tiny data for pictures, texts or ratings."""
    kinds: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
        "pictures": ((1, 8, 8), {}),
        "texts": ((6,), {"vocabulary": 11}),
        "ratings": ((2,), {"users": 5, "items": 7, "mean": 3.5}),
    }
    shape, given_to_models = kinds[kind]
    labels = torch.arange(SAMPLES) % 4
    data = TensorDataset(torch.ones(SAMPLES, *shape), labels)
    return Task(
        data=Data(train=data, test=data, input_shape=shape, labels=labels, groups=labels, sha256="of nothing"),
        objective=Objective(
            outputs=4,
            loss=torch.nn.functional.cross_entropy,
            metric=accuracy,
            metric_name="accuracy",
            higher_is_better=True,
        ),
        model_arguments=given_to_models,
    )


@st.composite
def chosen(draw: st.DrawFn) -> dict[str, Any]:
    """Any file of each group, as somebody would choose them."""
    cfg = config()
    for group in draw(st.sets(st.sampled_from(GROUPS))):
        cfg[group] = node(group, draw(st.sampled_from(files(group))))
    return cfg


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a configuration with one to four wrong values, unknown keys or missing keys."""
    cfg = draw(chosen())
    for _ in range(draw(st.integers(1, 4))):
        group = draw(st.sampled_from([None, *GROUPS]))
        place = cfg if group is None else cfg.get(group)
        if not isinstance(place, dict):
            continue
        key = draw(st.sampled_from(sorted(place)) if place else st.just("a"))
        match draw(st.sampled_from(["number", "number", "number", "value", "add", "remove", "nested"])):
            case "number":
                place[key] = draw(fuzzing.NUMBERS)
            case "value":
                place[key] = draw(fuzzing.VALUES)
            case "add":
                place[draw(fuzzing.TEXTS)] = draw(fuzzing.VALUES)
            case "remove":
                place.pop(key, None)
            case _:
                place[key] = draw(st.lists(st.one_of(fuzzing.INTEGERS, fuzzing.VALUES), max_size=4))
    return cfg


def build_all(cfg: dict[str, Any], world_size: int, kind: str) -> None:
    """Build all that a run builds before a process group exists, and take one step on one rank."""
    settings = parse(cfg, choices={}, world_size=world_size)
    data = task(kind)
    check_against_data(settings, data, world_size)
    hparams(settings, world_size)
    config_sha256(settings.cfg)
    model = create_model(settings, data)
    settings.optimizer.create(model.parameters())
    total_steps = settings.options.total_steps(SAMPLES)
    for step in (1, 2, total_steps):
        assert settings.schedule.factor(step, total_steps) >= 0
    settings = settings.for_steps(total_steps)
    now = CadenceContext(step=1, period=4, base=4, lr=settings.optimizer.lr, drift=0.1)
    assert settings.cadence.next_period(now) >= 1
    step_once(settings.sync, settings.reducer, settings.optimizer.create)


def step_once(sync: Any, reducer: Any, optimizer: Any) -> None:
    if refusal(sync, None, 1) is None:
        Loop(sync, reducer=reducer, optimizer=optimizer).run(2).flush()


@fuzzing.tries(1 / 4)
@given(configurations(), st.sampled_from([1, 2, 3]), st.sampled_from(["pictures", "texts", "ratings"]))
def test_any_configuration_is_built_or_refused_in_words(cfg: dict[str, Any], world_size: int, kind: str) -> None:
    before = copy.deepcopy(cfg)
    with fuzzing.little_memory(), mock.patch.object(memory, "machine_bytes", return_value=64_000_000):
        fuzzing.outcome(lambda: build_all(cfg, world_size, kind), (RefusedError,))
    assert repr(cfg) == repr(before)


# As typed and as written

ORDINARY = [
    *("sync=local_sgd", "sync.period=4", "optimizer.lr=0.1", "model.hidden=[8,8]", "run_name=a", "+experiment=lm"),
    *(
        "~slicing",
        "hydra.run.dir=a",
        "++seed=3",
        "schedule=cosine",
        "epochs=null",
        "nproc_per_node=2",
        "data_root='a b'",
    ),
]


@st.composite
def overrides(draw: st.DrawFn) -> str:
    good = draw(st.sampled_from(ORDINARY))
    key = good.partition("=")[0]
    value = draw(fuzzing.VALUES)
    typed = st.sampled_from([good, f"{key}={value}", f"{key}='{value}'", f"+{value}={key}", f"{key}=${{{value}}}"])
    return draw(st.one_of(typed, fuzzing.damaged(good.encode()).map(lambda data: data.decode(errors="replace"))))


def accepted(configs: Configs, typed: list[str]) -> None:
    def check(context: Any) -> None:
        parse(context.cfg, choices=context.choices, world_size=context.world_size)

    fuzzing.outcome(lambda: configs.compose(typed).checked(check, relaunch._nproc_per_node), (RefusedError,))


@fuzzing.tries(1 / 40)
@given(st.lists(overrides(), min_size=1, max_size=2))
def test_whatever_is_typed_is_composed_or_refused_in_words(typed: list[str]) -> None:
    accepted(Configs(folder=CONF, name="config"), typed)


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(CONF, tmp_path_factory.mktemp("conf") / "conf"))


def test_whatever_stands_in_a_file_is_composed_or_refused_in_words(conf: Path) -> None:
    good = (CONF / "experiment" / "article.yaml").read_bytes()

    @fuzzing.tries(1 / 40)
    @given(fuzzing.damaged(good))
    def look(damaged: bytes) -> None:
        (conf / "experiment" / "theirs.yaml").write_bytes(damaged)
        with fuzzing.little_memory():
            accepted(Configs(folder=conf, name="config"), ["+experiment=theirs"])

    look()


# Found so, once


def refused(cfg: dict[str, Any], kind: str = "pictures") -> str:
    with pytest.raises(ConfigError) as raised:
        build_all(cfg, 2, kind)
    return str(raised.value)


def test_a_number_that_no_tensor_has_is_refused() -> None:
    wanted = f"sync.period: found {2**63}, expected an integer >= 1, of at most 64 bits"
    assert refused(config(f"sync.period={2**63}", sync="local_sgd")) == wanted


@pytest.mark.parametrize("typed", ["model.hidden=[100000,100000]", f"model.hidden=[{2**62},{2**62}]"])
def test_a_model_that_memory_cannot_hold_is_refused(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10_000_000_000)
    assert refused(config(typed)).startswith("model: ")


def test_a_state_that_does_not_fit_is_refused_when_a_run_is_resumed(tmp_path: Path) -> None:
    session = mock.MagicMock()
    session.state.load_state_dict.side_effect = KeyError("weights")
    with (
        mock.patch("ddp_agent.training.checkpoints.load", return_value=(7, {})),
        mock.patch("ddp_agent.training.checkpoints.rehearse"),
        pytest.raises(RefusedError, match="of step 7 holds"),
    ):
        load_state(session, tmp_path, {})
