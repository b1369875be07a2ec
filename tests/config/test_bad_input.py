"""Bad input: refused before anything starts, all of it at once, each with its key, what was found and what is right."""

import functools
from collections.abc import Mapping
from typing import Any

import pytest
from configs import config, node, parsed, refusal, settings

from ddp_agent.errors import ConfigError
from ddp_agent.sync import LocalSGD
from ddp_agent.training.settings import GROUPS


def composed_refusal(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        settings(*overrides)
    assert refused.value.exit_code == 2
    return refused.value.problems


# One wrong value

POSITIVE = "expected an integer >= 1"
RATE = "expected a finite number >= 0"
WRONG_NUMBERS = {"-1": "-1", "nan": "nan", "inf": "inf", "true": "True", "null": "None", "'8'": "'8'", "[8]": "[8]"}
WRONG_PERIODS = WRONG_NUMBERS | {"0": "0", "1.5": "1.5", "8x": "'8x'", "1e3": "1000.0"}
WRONG_RATES = WRONG_NUMBERS | {"1e400": "inf", "-1e400": "-inf", "9" * 400: "9" * 400}


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        *[(f"sync.period={text}", f"found {value}, {POSITIVE}") for text, value in WRONG_PERIODS.items()],
        *[(f"optimizer.lr={text}", f"found {value}, {RATE}") for text, value in WRONG_RATES.items()],
        ("optimizer.momentum=1.5", "found 1.5, expected a finite number >= 0 and <= 1"),
        ("optimizer.nesterov=1", "found 1, expected true or false"),
        ("sync.buffers=mean", "found 'mean', expected one of average, rank0, local, recalibrate"),
        ("model.hidden=[128,0]", "found [128, 0], expected a list, each an integer >= 1"),
        ("model.hidden=128", "found 128, expected a list, each an integer >= 1"),
        ("dataset.loss=hinge", "found 'hinge', expected one of cross_entropy, half_squared_error"),
        ("schedule.warmup_steps=-1", "found -1, expected an integer >= 0"),
        ("seed=-1", "found -1, expected an integer >= 0"),
        ("seed=1.0", "found 1.0, expected an integer >= 0"),
        ("epochs=0", f"found 0, {POSITIVE} or null"),
        ("max_steps=0", f"found 0, {POSITIVE} or null"),
        ("global_batch_size=0", f"found 0, {POSITIVE}"),
        ("global_batch_size=64.0", f"found 64.0, {POSITIVE}"),
        ("accumulation_steps=0", f"found 0, {POSITIVE}"),
        ("accumulation_steps=null", f"found None, {POSITIVE}"),
        ("eval_every=0", f"found 0, {POSITIVE} or null"),
        ("log_every=-20", f"found -20, {POSITIVE}"),
        ("nproc_per_node=0", f"found 0, {POSITIVE} and <= 1024 or null"),
        ("device=gpu", "found 'gpu', expected one of auto, cpu, cuda"),
        ("precision=fp64", "found 'fp64', expected one of fp32, bf16, fp16"),
        ("compile=yes", "found 'yes', expected true or false"),
        ("clip_norm=0", "found 0, expected a finite number > 0 or null"),
        ("ema_decay=1", "found 1, expected a finite number >= 0 and < 1 or null"),
        ("target=nan", "found nan, expected a finite number or null"),
        ("timeout_s=0", "found 0, expected a finite number > 0 and <= 1e+09"),
        ("timeout_s=1e300", "found 1e+300, expected a finite number > 0 and <= 1e+09"),
        ("trusted_packages=mine", "found 'mine', expected a list, each a string"),
        ("data_root=''", "found '', expected a path or null"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_key(typed: str, problem: str) -> None:
    key = typed.partition("=")[0]
    assert refusal(typed, sync="local_sgd") == [f"{key}: {problem}"]


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", ".hidden", "-x", "..", "", "a b", "x" * 101, "é", "a\n"])
def test_a_run_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    expected = "expected a string of up to 100 letters, digits, '.', '_', '-', led by a letter or digit"
    with pytest.raises(ConfigError) as refused:
        parsed(config() | {"run_name": name})
    assert refused.value.problems == [f"run_name: found {name!r}, {expected}"]


@pytest.mark.parametrize("name", ["a", "2026-11-23_16-15-38-573", "x" * 100, "v1.2_final"])
def test_an_ordinary_run_name_is_kept(name: str) -> None:
    assert parsed(config() | {"run_name": name}).options.run_name == name


def test_data_that_needs_a_place_says_so() -> None:
    (problem,) = refusal(dataset="cifar10")
    assert problem.startswith(
        "dataset: CIFAR10: data_root: found None, expected a path (set data_root=<folder>). The data are CIFAR-10"
    )
    assert refusal("data_root=5", dataset="cifar10") == ["data_root: found 5, expected a path or null"]
    assert refusal("data_root=5", "dataset.augment=1", dataset="cifar10") == [
        "data_root: found 5, expected a path or null",
        "dataset.augment: found 1, expected true or false",
    ]


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_must_be_chosen(group: str) -> None:
    for wrong in ({"name": None}, None, "mlp"):
        with pytest.raises(ConfigError) as refused:
            parsed(config() | {group: wrong})
        (problem,) = refused.value.problems
        assert problem.startswith(group)
    left_out = {key: value for key, value in config().items() if key != group}
    with pytest.raises(ConfigError, match=f"^{group}: found None, expected a choice from conf/{group}/$"):
        parsed(left_out)


def test_a_missing_root_key_is_named() -> None:
    left_out = {key: value for key, value in config().items() if key != "seed"}
    with pytest.raises(ConfigError, match=r"^seed: missing, expected an integer >= 0$"):
        parsed(left_out)


# Keys, names and code, as typed


@pytest.mark.parametrize(
    ("overrides", "beginnings"),
    [
        (["sede=1"], ["sede: unknown key, did you mean seed? (--cfg job prints all keys)"]),
        (["+sede=1"], ["sede: unknown key, did you mean seed? (--cfg job prints all keys)"]),
        (["++sede=1"], ["sede: unknown key, did you mean seed? (--cfg job prints all keys)"]),
        (["sync.perod=4", "sync=diloco"], ["sync.perod: unknown key, did you mean period? (known: buffers, "]),
        (["+sync.perod=4", "sync=diloco"], ["sync.perod: unknown key, did you mean period? (known: buffers, "]),
        (["+optimiser.lr=1"], ["optimiser: unknown key, did you mean optimizer? (--cfg job prints all keys)"]),
        (["+zzz.a=1"], ["zzz: unknown key (--cfg job prints all keys)"]),
        (["sync=local_sdg"], ["sync: found 'local_sdg', did you mean local_sgd? (known: allreduce, "]),
        (["sync.name=LocalSDG"], ["sync.name: found 'LocalSDG', did you mean LocalSGD? (known: AllReduce, "]),
        (["~sync"], ["sync: found None, expected a choice from conf/sync/"]),
        (["~seed"], ["seed: missing, expected an integer >= 0"]),
        (["run_name=../../x"], ["run_name: found '../../x', expected a string of up to 100 letters"]),
        (["optimizer.lr=nan"], ["optimizer.lr: found nan, expected a finite number >= 0"]),
        (["+model.outputs=3"], ["model.outputs: found 3, but the run itself sets it; leave it out"]),
        (["+model._target_=os.abort"], ["model._target_: found _target_, but objects are named by `name:` here"]),
        (["+_target_=os.abort"], ["_target_: found _target_, but objects are named by `name:` here"]),
        (["sync.name=os:abort"], ["sync.name: found 'os:abort', but trusted_packages does not list 'os'"]),
    ],
)  # fmt: skip
def test_what_is_typed_wrong_is_refused_in_one_line(overrides: list[str], beginnings: list[str]) -> None:
    problems = composed_refusal(*overrides)
    assert len(problems) == len(beginnings), problems
    assert [problem[: len(start)] for problem, start in zip(problems, beginnings, strict=True)] == beginnings


@pytest.mark.parametrize(
    ("path", "problems"),
    [
        ("model.hidden", ["model.hidden: found [{'_target_': 'os.abort'}], expected a list, each an integer >= 1"]),
        ("trusted_packages", ["trusted_packages: found [{'_target_': 'os.abort'}], expected a list, each a string"]),
    ],
)
def test_code_is_found_at_any_depth(path: str, problems: list[str]) -> None:
    cfg = config()
    *nodes, key = path.split(".")
    functools.reduce(dict.__getitem__, nodes, cfg)[key] = [{"_target_": "os.abort"}]
    with pytest.raises(ConfigError) as refused:
        parsed(cfg)
    assert refused.value.problems == [
        *problems,
        f"{path}[0]._target_: found _target_, but objects are named by `name:` here",
    ]


def test_a_damaged_list_of_trusted_packages_trusts_nobody() -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(config(f"trusted_packages={LocalSGD.__module__}", f"sync.name='{LocalSGD.__module__}:LocalSGD'"))
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["trusted_packages", "sync.name"]


# Everything at once


def test_all_problems_are_told_at_once_in_whatever_part_they_are() -> None:
    typed = [
        "optimizer.lr=-1", "seed=-1", "global_batch_size=63", "sync=post_local_sgd", "sync.switch_step=99",
        "max_steps=50", "reducer=bf16", "schedule=cosine", "schedule.final=2", "+extra=1", "model.hidden=[0]",
        "dataset=fashion_mnist", "run_name=../x", "+optimizer.momentun=1", "resume=/nowhere",
    ]  # fmt: skip
    problems = composed_refusal(*typed)
    assert sorted(problem.partition(":")[0] for problem in problems) == [
        "dataset", "extra", "global_batch_size", "model.hidden", "optimizer.lr", "optimizer.momentun",
        "reducer", "resume", "run_name", "schedule.final", "seed", "sync.switch_step",
    ]  # fmt: skip
    assert all("expected" in line or "unknown key" in line or "use reducer=dense" in line for line in problems)


def test_what_cannot_be_composed_hides_no_wrong_value() -> None:
    problems = composed_refusal("sync.perod=4", "optimizer.lr=-1", "global_batch_size=63")
    assert [problem.partition(":")[0] for problem in problems] == ["sync.perod", "optimizer.lr", "global_batch_size"]


def test_a_wrong_part_hides_no_problem_of_another() -> None:
    def keys(wrong: Mapping[str, Any]) -> set[str]:
        with pytest.raises(ConfigError) as refused:
            parsed({**config("epochs=null", "global_batch_size=63", sync="local_sgd", reducer="fp16"), **wrong})
        return {problem.partition(":")[0] for problem in refused.value.problems}

    together = {"epochs", "global_batch_size", "reducer"}
    assert keys({}) == together
    assert keys({"seed": -1}) == together | {"seed"}
    assert keys({"data_root": 5}) == together | {"data_root"}
    assert keys({"model": node("model", "mlp", hidden=0)}) == together | {"model.hidden"}
    assert keys({"accumulation_steps": 0}) == together - {"global_batch_size"} | {"accumulation_steps"}


# What a mode asks of its own numbers, of the world, and of cadence and reducer


@pytest.mark.parametrize(
    ("overrides", "beginning"),
    [
        (["sync=streaming_diloco", "sync.period=10", "sync.fragments=4"], "sync: fragments: found 4 in a period of 10"),
        (["sync=streaming_diloco", "sync.delay=8"], "sync: delay: found 8, expected less than the 8 steps"),
        (["sync=hierarchical", "sync.node_period=9"], "sync: node_period: found 9 beside global_period 8"),
        (["sync=hierarchical", "ranks_per_node=3"], "ranks_per_node: found 3, expected a divisor of the 2 ranks: 1, 2"),
        (["sync=gossip", "sync.graph=star"], "sync.graph: found 'star', expected one of ring, exponential, complete"),
        (["sync=gossip", "sync.buffers=rank0"], "sync.buffers: found 'rank0', expected one of average, local, recal"),
        (["sync=gossip", "sync.optimizer_state=average"], "sync.optimizer_state: found 'average', expected one of loc"),
        (["sync=streaming_diloco", "sync.fragments=[]"], "sync: fragments: found 0 in a period of 16 steps"),
        (
            ["sync=compressed", "reducer=topk", "reducer.ratio=0"],
            "reducer.ratio: found 0, expected a finite number",
        ),
        (["sync=compressed", "reducer=topk", "reducer.ratio=1.01"], "reducer.ratio: found 1.01, expected a finite"),
        (["reducer=powersgd", "reducer.rank=0"], "reducer.rank: found 0, expected an integer >= 1"),
        (["sync=gossip", "reducer=bf16"], "reducer: Gossip sends raw parameters, which a lossy"),
        (["sync=hierarchical", "reducer=fp16"], "reducer: Hierarchical sends raw parameters"),
        (["sync=slowmo", "sync.slow_momentum=1"], "sync.slow_momentum: found 1, expected a finite number >= 0 and < 1"),
        (["sync=easgd", "sync.alpha=0"], "sync.alpha: found 0, expected a finite number > 0"),
        (["cadence=qsr"], "cadence: found QSR, but AllReduce has no period: use cadence=fixed"),
        (["cadence=linear", "sync=local_sgd", "cadence.final_period=0"], "cadence.final_period: found 0, expected"),
        (["+sync.cadence=linear", "sync=local_sgd"], "sync.cadence: found 'linear', but the run itself sets it"),
    ],
)
def test_modes_cadences_and_reducers_that_do_not_fit(overrides: list[str], beginning: str) -> None:
    (problem,) = composed_refusal(*overrides)
    assert problem.startswith(beginning)


def test_a_graph_that_the_number_of_ranks_does_not_fit() -> None:
    cfg = config("global_batch_size=60") | {"sync": node("sync", "gossip", graph="exponential")}
    with pytest.raises(ConfigError, match=r"^sync\.graph: found exponential among 6 ranks, expected a power of two"):
        parsed(cfg, world_size=6)
