"""Code that gives a model other memory after setup: it is copied back, or refused by name, in every mode."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from loops import Loop, alone
from mode_cases import ALL, TRAITS
from rank_pool import RankPool
from storage_changes import CHANGING, EVERY, HARMLESS, KEPT, REFUSED, End, Records, looped, net, replace_and_train
from torch import nn

from ddp_agent.distributed.topology import Topology
from ddp_agent.errors import ModelChangedError
from ddp_agent.reducers import Dense
from ddp_agent.sync import AllReduce, LocalSGD, SyncStrategy
from ddp_agent.sync.engine.flat import Flat
from ddp_agent.sync.engine.internals import internals
from ddp_agent.sync.engine.storage_guard import log

FEW = ("local_sgd", "diloco", "allreduce", "allreduce in buckets")
ROUNDING = 1e-6  # a convolution adds in another order where its weight lies channels-last


def ends(mode: str, changes: Sequence[str], on: tuple[int, ...] = (0, 1)) -> dict[str, End]:
    topology = Topology.create()
    return {
        name: looped(ALL[mode](), topology, Dense(), EVERY[name], rank=topology.world.rank, on=on) for name in changes
    }


def furthest(one: End, other: End) -> float:
    """Return the largest distance between the tensors of two models; infinity where these are not the same."""
    if [each.shape for each in one.tensors] != [each.shape for each in other.tensors]:
        return float("inf")
    pairs = zip(one.tensors, other.tensors, strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("mode", FEW)
def test_training_goes_on_as_if_nothing_had_happened(ranks2: RankPool, mode: str) -> None:
    for mine in ranks2.run(ends, mode, list(HARMLESS)):
        untouched = mine.pop("nothing")
        mine["a local buffer"].tensors.pop()
        for name, end in mine.items():
            assert not end.refused, name
            assert furthest(end, untouched) <= ROUNDING, name
            assert all("were copied back" in text for text in end.said)
            assert len(end.said) == (name not in KEPT), name


@pytest.mark.parametrize("mode", ALL)
def test_every_mode_notices_it_on_one_rank_alone(ranks2: RankPool, mode: str) -> None:
    changes = ("nothing", "data of all", "a buffer assigned in forward")
    first, second = ranks2.run(ends, mode, changes, (1,))
    for ranks in (first, second):
        untouched = ranks.pop("nothing")
        assert all(furthest(end, untouched) == 0 for end in ranks.values())
    assert [len(end.said) for end in (*first.values(), *second.values())] == [0, 0, 1, 1]


@pytest.mark.parametrize("mode", FEW)
def test_ranks_stay_together_where_values_change(ranks2: RankPool, mode: str) -> None:
    first, second = ranks2.run(ends, mode, list(CHANGING))
    for name in CHANGING:
        if mode == "allreduce in buckets":
            assert "lost its hook" in first[name].refused
            assert first[name].refused == second[name].refused
        else:
            assert furthest(first[name], second[name]) == 0
            assert first[name].distance == 0


def set_up(sync: SyncStrategy, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sync.setup(model, optimizer, alone(), Dense())
    return optimizer


@pytest.mark.parametrize("mode", [LocalSGD(period=2), AllReduce()], ids=["local_sgd", "allreduce"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_go_back_is_refused_by_name(mode: SyncStrategy, name: str) -> None:
    change, text = REFUSED[name]
    sync, model = copy.deepcopy(mode), net()
    change(model, set_up(sync, model))
    if "in forward" in name:
        model(torch.ones(2, 3, 4, 4))
    with pytest.raises(ModelChangedError, match=text):
        sync.flush(1)


@pytest.mark.parametrize("mode", FEW)
def test_every_rank_refuses_at_the_next_synchronisation(ranks2: RankPool, mode: str) -> None:
    for end in ranks2.run(ends, mode, ["a layer replaced"]):
        assert end["a layer replaced"].refused.startswith(
            "ModelChangedError: the model has changed since setup: 3.4.weight"
        )


def uses(sync: SyncStrategy) -> dict[str, Any]:
    """Everything that exchanges, measures or saves a model's weights."""

    def evaluated() -> None:
        with sync.eval_weights():
            pass

    return {
        "before_step": lambda: sync.before_step(1),
        "after_step": lambda: sync.after_step(40),  # a loop may begin late: one step behind every mode's period
        "flush": lambda: sync.flush(1),
        "eval_weights": evaluated,
        "consensus_distance": sync.consensus_distance,
        "state_dict": sync.state_dict,
        "load_state_dict": lambda: sync.load_state_dict(sync.state_dict()),
        "the trainer's weights": lambda: internals(sync).flat,
        "the check that ranks agree": lambda: internals(sync).replicated(1),
    }


@pytest.mark.parametrize("mode", ALL)
def test_every_use_of_the_weights_looks_first(mode: str) -> None:
    gradients = TRAITS[mode].sends == "gradients" or TRAITS[mode].averages_in_backward
    for name in uses(ALL[mode]()):
        if name == "before_step" and not gradients:
            continue
        sync, model = ALL[mode](), net()
        set_up(sync, model)
        weight = model.get_parameter("0.weight")
        weight.data = weight.data + 1
        expected = weight.detach().clone()
        uses(sync)[name]()
        if name == "after_step" and not internals(sync).exchanges(40):
            continue
        if name not in ("after_step", "flush"):  # where the outer optimizer steps
            assert torch.equal(weight, expected), name
        assert weight.data_ptr() == internals(sync).flat.parameters.data_ptr(), name


def test_an_evaluation_leaves_no_buffer_behind_that_its_forward_assigned() -> None:
    sync, model = LocalSGD(period=2), net()
    set_up(sync, model)
    own: Any = model.get_buffer("1.running_mean")
    with sync.eval_weights():
        model.get_submodule("1").running_mean = torch.full((8,), 3.0)
    assert model.get_buffer("1.running_mean") is own
    assert torch.equal(own, torch.zeros(8))


def test_a_tensor_is_named_once() -> None:
    sync, model, handler = LocalSGD(period=1), net(), Records()
    set_up(sync, model)
    log.addHandler(handler)
    try:
        for step in range(1, 4):
            HARMLESS["a buffer assigned"](model, None)
            sync.after_step(step)
        bias = model.get_parameter("0.bias")
        bias.data = bias.data.clone()
        sync.after_step(4)
    finally:
        log.removeHandler(handler)
    assert [text.partition(" ")[0] for text in handler.said] == ["1.running_mean", "0.bias"]


def adopted() -> tuple[float, float]:
    """Return what a new layer that the optimizer trains learned, and how far ranks are apart in it."""
    torch.set_default_dtype(torch.float64)  # that of the new layer
    loop = Loop(LocalSGD(period=2), model=lambda: net().double(), batches=pictures)
    replace_and_train(loop.module, loop.optimizer)
    loop.run(2)
    layer: Any = loop.module.get_submodule("3.4")
    first = layer.weight.detach().clone()
    loop.run(2)
    mine = loop.topology.world.all_gather(layer.weight.detach())
    return (layer.weight - first).abs().max().item(), (mine[0] - mine[1]).abs().max().item()


def pictures(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    draw = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 3, 4, 4), (6, 4))]
    return draw[0], draw[1]


def test_a_new_layer_that_the_optimizer_trains_is_taken_in(ranks2: RankPool) -> None:
    for learned, distance in ranks2.run(adopted):
        assert learned > 0
        assert distance == 0


def test_parameters_that_share_memory_are_refused_before_they_are_taken_apart() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 3))
    model[2].weight.data = model[1].weight.data
    with pytest.raises(ValueError, match=r"2\.weight shares memory with 1\.weight; tie two parameters by making"):
        Flat(model)


class Shared(nn.Module):
    """A model with all that is legal: one parameter under two names, a local buffer, buffers of other types."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        self.register_buffer("table", torch.arange(4))
        self.register_buffer("cache", torch.zeros(4), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.cache = inputs.detach().sum(0)
        outputs: torch.Tensor = self.second(self.first(inputs)) * self.mask
        return outputs


def test_what_is_legal_is_let_alone() -> None:
    sync, model, handler = LocalSGD(period=1), Shared(), Records()
    set_up(sync, model)
    log.addHandler(handler)
    try:
        model(torch.ones(2, 4)).sum().backward()
        sync.after_step(1)
    finally:
        log.removeHandler(handler)
    assert handler.said == []
    assert model.second.weight is model.first.weight
