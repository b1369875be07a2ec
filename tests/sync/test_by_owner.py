"""Ranks that train different heads: a head is its owners' alone, and of what they have in common all is as ever."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import DTYPE, Loop, apart, random_batch, refusal, sgd
from pieces import REDUCERS
from rank_pool import RankPool
from run_states import same
from runs import FEW
from test_laws import ALL, TOLERANCE, TRAITS, has_replicas
from test_sync import assert_stated, one_averaging
from torch import Tensor, nn

from ddp_agent.distributed.comm import CommStats
from ddp_agent.distributed.consistency import require_replicated
from ddp_agent.distributed.topology import Topology
from ddp_agent.distributed.traffic import Collective
from ddp_agent.errors import DivergedError
from ddp_agent.models.common.multi_task import MultiTask
from ddp_agent.reducers import Dense, Reducer
from ddp_agent.sync import Gossip, Independent, LocalSGD, ParameterUpdate, StreamingDiLoCo, SyncStrategy
from ddp_agent.sync.engine.by_owner import ByOwner
from ddp_agent.sync.engine.internals import internals
from ddp_agent.sync.engine.uneven_inputs import Weighted
from ddp_agent.training.ema import EMA

HEADS = ("a", "b", "c")
PARTED = {"a": (0, 2), "b": (1,), "c": (2,)}  # of three ranks
Owners = dict[str, tuple[int, ...]]
SHARED: Owners = dict.fromkeys(HEADS, (0, 1, 2))

MODES = pytest.mark.parametrize("mode", ALL)


def allowed(mode: str) -> list[str]:
    found = [name for name, make in REDUCERS.items() if refusal(ALL[mode](), make()) is None]
    return [name for name in found if (mode, name) != ("allreduce in buckets", "powersgd")]


def plain() -> MultiTask:
    """Three heads of one shape, which nothing but their names tells apart."""
    torch.manual_seed(1)
    heads = {head: nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1)) for head in HEADS}
    return MultiTask(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), heads).to(DTYPE)


def normed() -> MultiTask:
    """Return a model with BatchNorm in trunk and heads."""
    torch.manual_seed(1)
    trunk = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh())
    heads = {head: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)) for head in HEADS}
    return MultiTask(trunk, heads).to(DTYPE)


def same_batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    return random_batch(step, 0)


class Heads(Loop):
    """A rank's own heads, each towards a target of its own. Without `owners`: all heads, and no ByOwner."""

    def __init__(
        self,
        mode: SyncStrategy,
        owners: Owners | None = PARTED,
        *,
        model: Callable[[], MultiTask] = normed,
        amplified: bool = True,
        **options: Any,
    ) -> None:
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.owners = owners or dict.fromkeys(HEADS, tuple(range(ranks)))
        mine = {head: ranks / len(own) if amplified else 1.0 for head, own in self.owners.items() if rank in own}
        self.columns = [HEADS.index(head) for head in mine]

        def told() -> nn.Module:
            module = model()
            module.trained = mine
            return module

        named = {f"heads.{head}": own for head, own in self.owners.items()}
        super().__init__(ByOwner(mode=mode, owners=named) if owners else mode, model=told, **options)

    def run(self, steps: int) -> "Heads":
        for _ in range(steps):
            self.step += 1
            inputs, target = self.batches(self.step, self.topology.world.rank)
            with self.sync.backward_context(self.step, last_micro_batch=True):
                errors = (self.model(inputs) - target[:, self.columns]).square().mean(0)
                (errors.sum() / len(HEADS)).backward()
            self.sync.before_step(self.step)
            self.optimizer.step()
            self.sync.after_step(self.step)
            self.optimizer.zero_grad()
        return self

    def flush(self) -> "Heads":
        super().flush()
        return self

    def state(self, *, buffers: bool = True) -> dict[str, Tensor]:
        """Return trunk and heads, each as one vector."""
        found = self.module.state_dict() if buffers else dict(self.module.named_parameters())
        parts = ["trunk", *(f"heads.{head}" for head in HEADS)]
        return {
            part.removeprefix("heads."): torch.cat(
                [tensor.detach().flatten().to(DTYPE) for name, tensor in found.items() if name.startswith(f"{part}.")]
            )
            for part in parts
        }

    def of_all(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return every rank's values of each part [ranks, numbers]."""
        with self.topology.world.uncounted():
            return {part: torch.stack(self.topology.world.all_gather(mine)) for part, mine in state.items()}

    def over_owners(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean of each part over those who train it, written out."""
        everybody = {"trunk": tuple(range(self.topology.world.size)), **self.owners}
        return {part: rows[list(everybody[part])].mean(0) for part, rows in self.of_all(state).items()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(apart(one[part], other[part]) for part in one)


# Who changes what, in every mode and with every reducer.


def changes(mode: str) -> list[str]:
    """Return the wrong results, each with its reducer."""
    wrong = []
    for reducer in allowed(mode):
        optimizer = sgd(momentum=0.9, weight_decay=0.1)
        loop = Heads(ALL[mode](), optimizer=optimizer, reducer=REDUCERS[reducer]())
        rank, before = loop.topology.world.rank, loop.state()
        loop.run(5)
        own = loop.state()
        with loop.sync.eval_weights():
            seen = loop.of_all(loop.state())
        if distance(own, loop.state()):
            wrong.append(f"{reducer}: evaluation has changed something")
        if not all(torch.equal(row, rows[0]) for rows in seen.values() for row in rows):
            wrong.append(f"{reducer}: ranks evaluate different models")
        after = loop.run(4).flush().state()
        if torch.equal(before["trunk"], after["trunk"]):
            wrong.append(f"{reducer}: the trunk is as it was")
        for head, owners in PARTED.items():
            if torch.equal(before[head], after[head]) == (rank in owners):
                wrong.append(f"{reducer}: head {head}")
            if all(torch.equal(before[head], row) for row in seen[head]):
                wrong.append(f"{reducer}: evaluation does not see what became of {head}")
    return wrong


@MODES
def test_a_head_changes_on_its_owners_and_a_trunk_everywhere(ranks3: RankPool, mode: str) -> None:
    assert ranks3.run(changes, mode) == [[]] * 3


def control_changes(mode: str) -> dict[str, bool]:
    loop = Heads(ALL[mode](), None, optimizer=sgd(momentum=0.9))
    before, after = loop.state(), loop.run(9).flush().state()
    return {head: torch.equal(before[head], after[head]) for head in HEADS}


def test_control_replicated_heads_change_on_every_rank(ranks3: RankPool) -> None:
    assert ranks3.run(control_changes, "local_sgd") == [dict.fromkeys(HEADS, False)] * 3


def called_by_all(weight_decay: float) -> list[str]:
    """Every rank calls every head, so all have gradients, be they zero; which of those of others have changed?"""
    loop = Heads(LocalSGD(period=2), optimizer=sgd(momentum=0.9, weight_decay=weight_decay))
    assert isinstance(loop.module, MultiTask)
    loop.module.trained = dict.fromkeys(HEADS, 1.0)
    loop.columns, before = list(range(len(HEADS))), loop.state(buffers=False)
    after = loop.run(3).state(buffers=False)
    return [head for head in HEADS if not torch.equal(before[head], after[head])]


def test_a_head_that_is_called_and_not_owned_stays_as_it_was(ranks3: RankPool) -> None:
    assert ranks3.run(called_by_all, 0.1) == [["a"], ["b"], ["a", "c"]]


def flipped_head(mode: str) -> str:
    """Return the error after one bit of a head of ranks 0 and 2 flipped on rank 2. Before, all were equal."""
    loop = Heads(ALL[mode](), optimizer=sgd(momentum=0.9)).run(9).flush()
    world, parts = loop.topology.world, internals(loop.sync).replicated(loop.step)
    require_replicated(parts, world, loop.step)
    head = parts[1 + HEADS.index("a")].tensor
    assert (head is None) == (world.rank == 1)
    if head is not None and world.rank == 2:
        head.view(torch.int64)[1] ^= 1
    with pytest.raises(DivergedError) as raised:
        require_replicated(parts, world, loop.step)
    return str(raised.value)


@pytest.mark.parametrize("mode", [mode for mode, traits in TRAITS.items() if has_replicas(traits)])
def test_a_head_that_its_owners_do_not_have_alike_is_named_on_every_rank(ranks3: RankPool, mode: str) -> None:
    (said,) = set(ranks3.run(flipped_head, mode))
    assert said.startswith("after step 9 the parameters of heads.a that its owners share are not the same on rank 2 as")


def measure_what_stays(reducer: str) -> float:
    """Return the distance of rank 1's own head from its value without synchronisation, after one step."""
    loops = Heads(Independent()), Heads(ParameterUpdate(period=1, combine="mean"), reducer=REDUCERS[reducer]())
    return apart(*(loop.run(1).state()["b"] for loop in loops))


@pytest.mark.parametrize("reducer", ["int8", "topk", "sign", "powersgd"])
def test_what_does_not_travel_loses_nothing(ranks3: RankPool, reducer: str) -> None:
    assert ranks3.run(measure_what_stays, reducer)[1] < TOLERANCE


# Whom a mean is over.


def measure_means() -> dict[str, float]:
    """One step and its average, against the steps of ranks alone and the means written out."""
    alone = Heads(Independent()).run(1)
    expected = alone.over_owners(alone.state(buffers=False))
    loop = Heads(LocalSGD(period=1)).run(1)
    rank, found = loop.topology.world.rank, loop.state(buffers=False)
    mine = {part for part, owners in PARTED.items() if rank in owners} | {"trunk"}
    with loop.sync.eval_weights():
        evaluated = loop.state(buffers=False)
    trained = alone.of_all(alone.state(buffers=False))
    # What torch's averager does: of all that has a gradient, the first with everybody's first, and so on.
    by_place = torch.stack([trained[head][owners[0]] for head, owners in PARTED.items()]).mean(0)
    return {
        "own": distance({part: expected[part] for part in mine}, found),
        "evaluated": distance(expected, evaluated),
        "control by place": apart(by_place, expected["b"]),
        "control over all": apart(trained["b"].mean(0), expected["b"]),
    }


def test_heads_of_one_shape_are_never_mixed(ranks3: RankPool) -> None:
    for distances in ranks3.run(measure_means):
        for name, found in distances.items():
            assert (found > 1e-3) if name.startswith("control") else (found < TOLERANCE), name


def measure_same_data(mode: str, reducer: str, owners: Owners, amplified: bool) -> float:
    """Every rank sees the same samples, so that it does not matter for a head how many ranks train it."""
    options: dict[str, Any] = {"optimizer": sgd(momentum=0.9, weight_decay=0.01), "batches": same_batch}
    all_heads = Heads(ALL[mode](), None, **options).run(6).flush()
    parted = Heads(ALL[mode](), owners, amplified=amplified, reducer=REDUCERS[reducer](), **options).run(6).flush()
    with parted.sync.eval_weights():
        return distance(all_heads.state(), parted.state())


@pytest.mark.parametrize("mode", ["allreduce", "allreduce in buckets", "compressed"])
def test_parted_gradients_are_those_of_all_tasks_together(ranks3: RankPool, mode: str) -> None:
    for owners in (PARTED, {"a": (0,), "b": (0, 1), "c": (0, 1, 2)}, {"a": (0,), "b": (1,), "c": (2,)}):
        assert max(ranks3.run(measure_same_data, mode, "dense", owners, True)) < TOLERANCE
    assert max(ranks3.run(measure_same_data, mode, "dense", PARTED, False)) > 1e-3  # control


def measure_all_own_all(mode: str) -> float:
    options: dict[str, Any] = {"optimizer": sgd(momentum=0.9)}
    one, other = (Heads(ALL[mode](), owners, **options).run(9).flush() for owners in (None, SHARED))
    return distance(one.state(), other.state())


# Fragments of a trunk are others than those of a whole model.
@pytest.mark.parametrize("mode", [mode for mode, traits in TRAITS.items() if traits.identical != "after_flush"])
def test_where_all_own_all_it_is_the_mode_itself(ranks3: RankPool, mode: str) -> None:
    assert max(ranks3.run(measure_all_own_all, mode)) < TOLERANCE


# Traffic.

TRUNK, HEAD = 5 * 4 + 4, 4 * 2 + 2 + 2 + 1


def traffic(mode: str, reducer: str) -> tuple[CommStats, list[Collective], int]:
    loop = Heads(ALL[mode](), model=plain, reducer=REDUCERS[reducer]()).run(10).flush()
    loop.sync.consensus_distance()
    with loop.sync.eval_weights():
        pass
    return loop.topology.world.stats, internals(loop.sync).traffic(10), loop.syncs


@pytest.mark.parametrize(
    ("mode", "reducer"),
    [(mode, reducer) for mode in ALL for reducer in ("dense", "bf16", "int8", "topk") if reducer in allowed(mode)],
)
def test_counted_bytes_are_what_the_mode_states_of_the_trunk_and_its_heads(
    ranks3: RankPool, mode: str, reducer: str
) -> None:
    for rank, (stats, stated, _) in enumerate(ranks3.run(traffic, mode, reducer)):
        assert_stated(stats, stated, rank)
        owners = {each.ranks for each in stated if each.group == "owners" and each.ranks > 1}
        assert owners == ({2} if rank in PARTED["a"] and TRAITS[mode].sends != "nothing" else set())


ROUNDS = {"local_sgd": 3, "diloco": 3, "streaming_diloco": 3, "gossip": 3, "hierarchical": 6, "allreduce": 10}


def expected_traffic(mode: str, reducer: str, rank: int) -> tuple[float, float]:
    """Of three averagings in ten steps: the trunk among three ranks, and the head that two of them have."""
    parts = [(TRUNK, 3), *([(HEAD, 2)] if rank in PARTED["a"] else [])]
    if mode == "gossip":  # to one neighbour or two
        sent = float(ROUNDS[mode] * sum(size * 8 * min(2, ranks - 1) for size, ranks in parts))
        return sent, sent
    cut = {TRUNK: [10, 14], HEAD: [8, 5]} if mode == "streaming_diloco" else {TRUNK: [TRUNK], HEAD: [HEAD]}
    each = [one_averaging(reducer, ranks, piece) for size, ranks in parts for piece in cut[size]]
    return ROUNDS[mode] * sum(payload for payload, _ in each), ROUNDS[mode] * sum(wire for _, wire in each)


@pytest.mark.parametrize(
    ("mode", "reducer"),
    [*((mode, "dense") for mode in ROUNDS), *(("diloco", name) for name in ("int8", "topk")), ("allreduce", "bf16")],
)
def test_counted_bytes_are_those_worked_out_by_hand(ranks3: RankPool, mode: str, reducer: str) -> None:
    for rank, (stats, _, syncs) in enumerate(ranks3.run(traffic, mode, reducer)):
        payload, wire = expected_traffic(mode, reducer, rank)
        assert stats.payload_bytes == payload
        assert stats.wire_bytes == pytest.approx(wire, abs=100)
        assert syncs == ROUNDS[mode] * (2 if mode == "streaming_diloco" else 1)


# Resume.


def saved(loop: Loop) -> dict[str, Any]:
    parts: dict[str, Any] = {"optimizer": loop.optimizer, "sync": loop.sync, "reducer": loop.reducer}
    state = {name: part.state_dict() for name, part in parts.items()}
    return copy.deepcopy(state | {"weights": loop.flat.snapshot(), "syncs": loop.syncs})


def resumed(make: Callable[[], Heads], state: dict[str, Any], step: int) -> Heads:
    loop = make().run(2)  # DDP settles its order of summation in the first passes
    state = copy.deepcopy(state)
    loop.flat.restore(state["weights"])
    internals(loop.sync).syncs = state["syncs"]
    for name in ("optimizer", "sync", "reducer"):
        getattr(loop, name).load_state_dict(state[name])
    loop.step = step
    return loop


def resume_everywhere(mode: str, reducers: list[str]) -> list[str]:
    """Each resumed run takes one step, and the next begins from what it saved."""
    wrong = []
    for reducer in reducers:

        def make(reducer: str = reducer) -> Heads:
            return Heads(ALL[mode](), reducer=REDUCERS[reducer](), optimizer=sgd(momentum=0.9))

        whole = make()
        states = [saved(whole.run(1)) for _ in range(9)]
        now = states[0]
        for step in range(1, 9):
            once = resumed(make, now, step).run(1)
            now = saved(once)
            if not same(now, states[step]):
                wrong.append(f"{reducer} at {step}")
        ended, final = (loop.flush().flat.snapshot() for loop in (once, whole))
        if not all(map(torch.equal, ended, final)):
            wrong.append(f"{reducer} at the end")
    return wrong


@pytest.mark.parametrize("mode", [pytest.param(m, marks=[] if m in FEW else pytest.mark.exhaustive) for m in ALL])
def test_resume_is_bitwise_at_every_step(ranks3: RankPool, mode: str) -> None:
    reducers = [reducer for reducer in ("dense", "int8", "powersgd") if reducer in allowed(mode)]
    assert ranks3.run(resume_everywhere, mode, reducers) == [[]] * 3


# What is measured, and what is made of the weights besides.


def measure_distance(mode: str) -> tuple[float, float]:
    loop = Heads(ALL[mode](), model=plain).run(3)
    state = loop.state(buffers=False)
    means = loop.over_owners(state)
    rank = loop.topology.world.rank
    mine = ["trunk", *(head for head, owners in PARTED.items() if rank in owners)]
    own = sum((state[part] - means[part]).square().sum() for part in mine)
    squares = torch.cat(loop.topology.world.all_gather(torch.as_tensor(own).reshape(1)))
    return loop.sync.consensus_distance(), math.sqrt(squares.mean().item())


@pytest.mark.parametrize("mode", ["independent", "local_sgd", "easgd", "allreduce"])
def test_the_distance_is_over_what_each_rank_trains(ranks3: RankPool, mode: str) -> None:
    for measured, by_definition in ranks3.run(measure_distance, mode):
        assert measured == pytest.approx(by_definition, rel=1e-9, abs=1e-14)
        assert (measured < 1e-14) == (mode == "allreduce")


def averaged_copies() -> float:
    """A moving average beside the weights: ranks keep one of heads that they do not train, too."""
    loop = Heads(LocalSGD(period=4))
    ema = EMA(loop.module, 0.0)  # the weights themselves
    loop.run(3)
    ema.update(loop.module)
    expected = loop.over_owners(loop.state())
    with ema.eval_weights(internals(loop.sync).mean_) as model:
        loop.module = model
        found = loop.state()
    return distance(*({part: state[part][:5] for part in state} for state in (expected, found)))


def test_a_moving_average_is_averaged_over_owners(ranks3: RankPool) -> None:
    assert max(ranks3.run(averaged_copies)) < TOLERANCE


def interrupted() -> bool:
    loop = Heads(LocalSGD(period=4)).run(3)
    before = loop.flat.snapshot()
    with pytest.raises(RuntimeError), loop.sync.eval_weights():
        raise RuntimeError
    return all(map(torch.equal, before, loop.flat.snapshot()))


def test_own_weights_are_back_after_an_exception(ranks3: RankPool) -> None:
    assert ranks3.run(interrupted) == [True] * 3


def nodes() -> list[int]:
    """The ranks of each owner's part of its node: of nodes {0, 1}, {2, 3} and owners 0, 2, 3."""
    topology = Topology.create(ranks_per_node=2)
    some = topology.among((0, 2, 3))
    if topology.among((0, 2, 3)) is not some or topology.among(range(4)) is not topology:
        return [-1]
    if some is None:
        return []
    return [some.world.size, some.node.size, some.across.size, len(topology.comms)]


def test_owners_know_their_nodes(ranks4: RankPool) -> None:
    assert ranks4.run(nodes) == [[3, 1, 2, 4], [], [3, 2, 2, 4], [3, 2, 1, 4]]


# What cannot be.


def misfit(owners: Owners, mode: SyncStrategy | None = None, ranks: int = 3) -> str | None:
    named = {f"heads.{head}": own for head, own in owners.items()}
    return refusal(ByOwner(mode=mode or LocalSGD(period=4), owners=named), None, ranks, ranks_per_node=ranks)


def test_owners_that_cannot_be() -> None:
    assert misfit(PARTED) is None
    assert "heads.b: found no rank that trains it" in str(misfit({"a": (0,), "b": ()}))
    assert "found [0, 3], expected one or more of the 3 ranks" in str(misfit({"a": (0, 3)}))
    assert "found [1, 1], expected" in str(misfit({"a": (1, 1)}))
    found = str(misfit({"a": (0, 1, 2), "b": (3,)}, Gossip(period=1, graph="exponential"), ranks=4))
    assert found.startswith("sync.graph: found exponential among 3 ranks") and "the ranks that train heads.a" in found


def refused(owners: dict[str, tuple[int, ...]], mode: SyncStrategy, reducer: Reducer) -> str:
    module = plain()
    sync = ByOwner(mode=mode, owners=owners)
    with pytest.raises(ValueError, match=r".") as error:
        sync.setup(module, torch.optim.SGD(module.parameters(), lr=0.1), Topology.create(), reducer)
    return str(error.value)


def test_what_is_no_head_is_refused(ranks1: RankPool) -> None:
    def said(owners: dict[str, tuple[int, ...]], mode: SyncStrategy, reducer: Reducer | None = None) -> str:
        found: str = ranks1.run(refused, owners, mode, reducer or Dense())[0]
        return found

    local = LocalSGD(period=2)
    assert said({"heads.x": (0,)}, local) == "heads.x: it has no parameters"
    assert "do not lie side by side" in said({"heads.a": (0,), "heads.c": (0,)}, local)
    assert "cannot tell apart" in said({"heads.a": (0,)}, local, Weighted(Dense()))
    streaming = StreamingDiLoCo(period=8, fragments=8)
    assert said({f"heads.{head}": (0,) for head in HEADS}, streaming).startswith(
        "what every rank trains: fragments: found 8"
    )
