"""Refusals of modes, all before anything is exchanged."""

from typing import Any, Literal

import pytest
import torch
from loops import DTYPE, Loop, alone, apart, mlp, sgd, train
from mode_cases import ALL, MODES
from pieces import REDUCERS
from rank_pool import RankPool
from torch import Tensor, nn

from ddp_agent.config.problems import Problem, RunFacts
from ddp_agent.distributed.comm import LocalComm
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers import Cast, Dense, Int8, PowerSGD, Reducer, TopK
from ddp_agent.sync import (
    AllReduce,
    DiLoCo,
    Independent,
    LocalSGD,
    ParameterUpdate,
    PostLocalSGD,
)


@pytest.mark.parametrize("name", REDUCERS)
def test_gradients_in_buckets_have_no_place_for_error_feedback(name: str) -> None:
    """DDP regroups its buckets after the first backward: a resumed residual would land on other parameters. PowerSGD
    waits until they stay; see test_traps."""
    model, reducer = mlp(), REDUCERS[name]()
    if not reducer.traits.remembers or reducer.traits.works_in_buckets:
        AllReduce().setup(model, sgd()(model.parameters()), alone(), reducer)
        return
    with pytest.raises(ValueError, match=r"use sync=compressed with it, or reducer=bf16"):
        AllReduce().setup(model, sgd()(model.parameters()), alone(), reducer)


@pytest.mark.parametrize("sync", [LocalSGD(period=2), PostLocalSGD(switch_step=1, period=2)])
def test_lossy_reducer_with_raw_parameters(sync: LocalSGD) -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"sync=parameter_update sync\.combine=mean"):
        sync.setup(model, sgd()(model.parameters()), alone(), Cast(dtype="bf16"))


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        (LocalSGD, {"period": 0}, "period"),
        (LocalSGD, {"period": 2.0}, "period"),
        (LocalSGD, {"period": True}, "period"),
        (LocalSGD, {"period": 2, "buffers": "mean"}, "buffers"),
        (LocalSGD, {"period": 2, "optimizer_state": "forget"}, "optimizer_state"),
        (DiLoCo, {"period": 2, "outer_lr": -0.1}, "outer_lr"),
        (DiLoCo, {"period": 2, "outer_lr": float("nan")}, "outer_lr"),
        (DiLoCo, {"period": 2, "outer_momentum": 1.5}, "outer_momentum"),
        (ParameterUpdate, {"period": 2, "combine": "max"}, "combine"),
        (PostLocalSGD, {"period": 2, "switch_step": -1}, "switch_step"),
        (Cast, {"dtype": "int8"}, "dtype"),
        (Int8, {"block": 0}, "block"),
        (TopK, {"ratio": 0}, "ratio"),
        (TopK, {"ratio": 1.5}, "ratio"),
        (PowerSGD, {"rank": 0}, "rank"),
        (PowerSGD, {"min_compression": -1}, "min_compression"),
    ],
)
def test_values_out_of_range(kind: type, values: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field}: found .*, expected"):
        kind(**values)


def differing_models() -> str:
    width = 4 + torch.distributed.get_rank()
    try:
        Loop(LocalSGD(period=1), model=lambda: nn.Linear(5, width, dtype=DTYPE))
    except ValueError as error:
        return str(error)
    return ""


def test_ranks_with_different_models_are_named(ranks3: RankPool) -> None:
    messages = ranks3.run(differing_models)
    assert len(set(messages)) == 1
    assert "ranks [1, 2]" in messages[0]


def frozen_on_rank_1(mode: str) -> str:
    def model() -> nn.Module:
        layers = mlp()
        layers[0].weight.requires_grad_(torch.distributed.get_rank() != 1)  # type: ignore[index]
        return layers

    try:
        Loop(ALL[mode](), model=model).run(5).flush()
    except ValueError as error:
        return str(error)
    return ""


@MODES
def test_ranks_that_train_other_parameters_are_named_where_they_would_meet_in_backward(
    ranks2: RankPool, mode: str
) -> None:
    """DDP's buckets would differ, and gloo ends the process. Elsewhere a frozen parameter is one that stays."""
    in_backward = ALL[mode]().traits.averages_in_backward
    for message in ranks2.run(frozen_on_rank_1, mode):
        assert ("(requires_grad) differ between ranks: not as on rank 0 are ranks [1]" in message) == in_backward
        assert in_backward or not message


def test_mixed_dtypes_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match=r"0\.weight: torch\.float32.*1\.weight: torch\.float64"):
        Independent().setup(model, sgd()(model.parameters()), alone(), Dense())


def nodes(ranks_per_node: int) -> str | tuple[int, int, list[float]]:
    try:
        topology = Topology.create(ranks_per_node)
    except ValueError as error:
        return str(error)
    rank = torch.tensor([float(topology.world.rank)])
    in_node, across = rank.clone(), rank.clone()
    topology.node.all_reduce_(in_node)
    topology.across.all_reduce_(across)
    return topology.node.rank, topology.across.rank, [in_node.item(), across.item()]


def test_ranks_per_node(ranks4: RankPool) -> None:
    assert ranks4.run(nodes, 2) == [(0, 0, [1.0, 2.0]), (1, 0, [1.0, 4.0]), (0, 1, [5.0, 2.0]), (1, 1, [5.0, 4.0])]
    assert "found 3, expected a divisor of the world size 4, one of [1, 2, 4]" in ranks4.run(nodes, 3)[0]


def test_the_summed_update_says_what_its_step_is() -> None:
    def remark(combine: Literal["sum", "mean"], outer_lr: float) -> Problem:
        (found,) = ParameterUpdate(period=1, combine=combine, outer_lr=outer_lr).problems(RunFacts(world_size=4))
        return found

    text, risky = (found := remark("sum", 1.0)).text, not found.harmless
    assert not found.fatal
    assert "effective step 4" in text
    assert "50%" in text
    assert risky
    assert remark("sum", 0.25).harmless
    assert remark("mean", 1.0).harmless


def unstable(curvature: float) -> float:
    """One dimension: error times 1 - K c a round, with c = 1 - (1 - lr curvature)^H."""

    def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
        return torch.full((1, 1), curvature**0.5, dtype=DTYPE), torch.zeros(1, 1, dtype=DTYPE)

    def point() -> nn.Module:
        layer = nn.Linear(1, 1, bias=False, dtype=DTYPE)
        nn.init.ones_(layer.weight)
        return layer

    sync = ParameterUpdate(period=2, combine="sum", outer_lr=1.0)
    return train(sync, 2, model=point, batches=batch, optimizer=sgd(lr=0.1)).item()


@pytest.mark.parametrize("curvature", [0.5, 2.0, 4.0])
def test_the_stability_formula_is_what_happens(ranks3: RankPool, curvature: float) -> None:
    gradient_scale = 2 * curvature  # of mean square error
    contraction = 1 - (1 - 0.1 * gradient_scale) ** 2
    assert ranks3.run(unstable, curvature)[0] == pytest.approx(1 - 3 * contraction, abs=1e-12)


def reducers_alone(reducer: Reducer) -> Tensor:
    tensor = torch.tensor([1.0, -2.5, 1e-3])
    reducer.mean_(tensor, LocalComm())
    return tensor


@pytest.mark.parametrize("name", [name for name, make in REDUCERS.items() if not make().traits.remembers])
def test_a_mean_of_one_is_itself_but_for_rounding(name: str) -> None:
    assert apart(reducers_alone(REDUCERS[name]()), torch.tensor([1.0, -2.5, 1e-3])) < 1e-5


@MODES
def test_a_mode_is_itself_and_no_other(mode: str) -> None:
    """Not its fields: some are there only after `setup`, and a comparison of tensors is no answer."""
    one, other = ALL[mode](), ALL[mode]()
    assert one == one
    assert one != other
    Loop(one, topology=alone())
    assert one == one and one != other and len({one, other}) == 2


def test_allreduce_alone_needs_no_wrapper() -> None:
    loop = Loop(AllReduce(), topology=alone())
    assert loop.model is loop.module
