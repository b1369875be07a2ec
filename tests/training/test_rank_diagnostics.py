"""Rank diagnostics, against their definitions written out over all ranks' vectors."""

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from loops import mlp, random_batch, sgd
from mode_cases import ALL
from rank_pool import RankPool
from torch import Tensor, nn

from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers import Dense
from ddp_agent.sync import AllReduce, DiLoCo, Independent, LocalSGD, PostLocalSGD, SyncStrategy
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.clock import Clock
from ddp_agent.training.rank_diagnostics import DECAY, Diagnostics

SAMPLES = 12  # of a rank's step: two micro-batches
Measured = dict[int, dict[str, float]]


class Loop:
    """The plain loop with two micro-batches, and the calls that diagnostics need."""

    def __init__(self, sync: SyncStrategy, every: int | None, per_layer: bool = False) -> None:
        self.sync, self.module = sync, mlp()
        self.optimizer = sgd()(self.module.parameters())
        self.topology = Topology.create()
        self.model = sync.setup(self.module, self.optimizer, self.topology, Dense())
        self.measured: Measured = {}
        self.diagnostics = Diagnostics(sync, Clock(), samples=SAMPLES, every=every, per_layer=per_layer)
        self.step = 0
        self.own: Tensor | None = None  # gradient of the last step
        self.before_sync: list[Tensor] = []  # parameters after each optimizer step
        self.after_sync = [internals(sync).flat.parameters.clone()]

    def note(self, step: int, values: Any) -> None:
        if values:
            self.measured[step] = {**self.measured.get(step, {}), **values}

    def run(self, steps: int) -> "Loop":
        rank = self.topology.world.rank
        for _ in range(steps):
            self.step += 1
            self.diagnostics.begin(self.step)
            for micro in (1, 2):
                inputs, target = random_batch(2 * self.step + micro, rank)
                with self.sync.backward_context(self.step, last_micro_batch=micro == 2):
                    (nn.functional.mse_loss(self.model(inputs), target) / 2).backward()
            self.sync.before_step(self.step)
            self.note(self.step, self.diagnostics.gradients(self.step))
            self.optimizer.step()
            self.before_sync.append(internals(self.sync).flat.parameters.clone())
            self.note(self.step, self.diagnostics.parameters(self.step))
            self.sync.after_step(self.step)
            self.after_sync.append(internals(self.sync).flat.parameters.clone())
            self.optimizer.zero_grad()
        return self

    def own_gradient(self, step: int) -> Tensor:
        """Return the gradient of a copy of the model that is never averaged, at the weights before the step."""
        model = mlp()
        nn.utils.vector_to_parameters(self.after_sync[step - 1], model.parameters())
        for micro in (1, 2):
            inputs, target = random_batch(2 * step + micro, self.topology.world.rank)
            (nn.functional.mse_loss(model(inputs), target) / 2).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def everybodys(self, own: Tensor) -> list[Tensor]:
        with self.topology.world.uncounted():
            return self.topology.world.all_gather(own)


def cosine(vectors: list[Tensor]) -> float:
    """Return the cosine of two different ranks' vectors, weighted by their lengths."""
    products = sum(float(one @ other) for one, other in permutations(vectors, 2))
    return products / (len(vectors) - 1) / sum(float(one @ one) for one in vectors)


def noise(vectors: list[Tensor]) -> tuple[float, float]:
    """McCandlish et al. 2018, appendix A.1, from batches of b and K b samples: |G|^2 and tr(Sigma)."""
    small, big = SAMPLES, SAMPLES * len(vectors)
    small_square = sum(float(v @ v) for v in vectors) / len(vectors)
    mean = torch.stack(vectors).mean(0)
    big_square = float(mean @ mean)
    signal = (big * big_square - small * small_square) / (big - small)
    variance = (small_square - big_square) / (1 / small - 1 / big)
    return signal, variance


def compare_gradients(make: Callable[[], SyncStrategy]) -> None:
    loop = Loop(make(), every=3).run(7)
    running_signal = running_variance = 0.0
    for step in (3, 6):
        vectors = loop.everybodys(loop.own_gradient(step))
        signal, variance = noise(vectors)
        running_signal = DECAY * running_signal + (1 - DECAY) * signal
        running_variance = DECAY * running_variance + (1 - DECAY) * variance
        assert loop.measured[step]["gradient_cosine"] == pytest.approx(cosine(vectors), rel=1e-9)
        critical = loop.measured[step].get("critical_batch_samples")
        if running_signal > 0:
            assert critical == pytest.approx(running_variance / running_signal, rel=1e-9)
        else:
            assert critical is None
    assert {step for step, values in loop.measured.items() if "gradient_cosine" in values} == {3, 6}


MODES: dict[str, Callable[[], SyncStrategy]] = {
    "independent": Independent,
    "allreduce": AllReduce,
    "local_sgd": lambda: LocalSGD(period=4),
    "post_local_sgd": lambda: PostLocalSGD(switch_step=4, period=2),
    "diloco": lambda: DiLoCo(period=4, outer_lr=0.7, outer_momentum=0.5, nesterov=True),
}


def compare_gradients_of(mode: str) -> None:
    compare_gradients(MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_gradients(ranks3: RankPool, mode: str) -> None:
    ranks3.run(compare_gradients_of, mode)


def compare_parameters(mode: str, expected: dict[int, int | None]) -> None:
    """`expected`: at which steps parameters are looked at, and after which step their period began."""
    loop = Loop(MODES[mode](), every=3).run(17)
    found = {step for step, values in loop.measured.items() if "consensus_distance" in values}
    assert found == set(expected)
    for step, began in expected.items():
        values = loop.measured[step]
        vectors = loop.everybodys(loop.before_sync[step - 1])
        mean = torch.stack(vectors).mean(0)
        distance = math.sqrt(sum(float((v - mean) @ (v - mean)) for v in vectors) / len(vectors))
        assert values["consensus_distance"] == pytest.approx(distance, rel=1e-9, abs=1e-14)
        assert values["consensus_relative"] == pytest.approx(distance / float(mean.norm()), rel=1e-9, abs=1e-14)
        assert ("change_cosine" in values) == (began is not None)
        if began is not None:
            changes = loop.everybodys(loop.before_sync[step - 1] - loop.after_sync[began])
            assert values["change_cosine"] == pytest.approx(cosine(changes), rel=1e-9)
            norm = torch.stack(changes).mean(0).norm()
            assert values["pseudo_gradient_norm"] == pytest.approx(float(norm), rel=1e-9)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("local_sgd", {8: 4, 12: 8}),
        ("diloco", {8: 4, 12: 8}),
        ("post_local_sgd", {6: 4, 10: 8, 14: 12, 16: 14}),
        ("allreduce", dict.fromkeys((3, 6, 9, 12, 15))),
        ("independent", dict.fromkeys((3, 6, 9, 12, 15))),
    ],
)
def test_parameters_before_a_synchronisation(ranks3: RankPool, mode: str, expected: dict[int, int | None]) -> None:
    ranks3.run(compare_parameters, mode, expected)


def compare_layers() -> None:
    loop = Loop(LocalSGD(period=2), every=1, per_layer=True).run(4)
    names = [name for name, _ in loop.module.named_parameters()]
    values = loop.measured[4]
    for key in ("consensus_distance", "pseudo_gradient_norm"):
        whole = sum(values[f"{key}/{name}"] ** 2 for name in names)
        assert math.sqrt(whole) == pytest.approx(values[key], rel=1e-9)
    assert len({values[f"change_cosine/{name}"] for name in names}) == len(names)
    assert not any("/" in key for key in loop.diagnostics.latest)


def test_layers_add_up(ranks3: RankPool) -> None:
    ranks3.run(compare_layers)


def disturbed(mode: str) -> list[bool]:
    make: Any = ALL[mode]
    watched, unwatched = Loop(make(), every=1), Loop(make(), every=None)
    for loop in (watched, unwatched):
        loop.run(9)
    assert not unwatched.measured
    stats = [loop.topology.world.stats for loop in (watched, unwatched)]
    return [
        torch.equal(internals(watched.sync).flat.parameters, internals(unwatched.sync).flat.parameters),
        stats[0].wire_bytes == stats[1].wire_bytes and stats[0].calls == stats[1].calls,
        bool(watched.measured),
    ]


@pytest.mark.parametrize("mode", ALL)
def test_looking_changes_nothing_and_costs_no_counted_byte(ranks2: RankPool, mode: str) -> None:
    assert ranks2.run(disturbed, mode) == [[True] * 3] * 2


def resumed(stop: int) -> None:
    whole = Loop(LocalSGD(period=4), every=3).run(17)
    first = Loop(LocalSGD(period=4), every=3).run(stop)
    second = Loop(LocalSGD(period=4), every=3)
    internals(second.sync).flat.restore(internals(first.sync).flat.snapshot())
    second.sync.load_state_dict(first.sync.state_dict())
    second.diagnostics.load_state_dict(first.diagnostics.state_dict())
    second.step = stop
    second.run(17 - stop)
    assert first.measured | second.measured == whole.measured
    assert second.diagnostics.latest == whole.diagnostics.latest


@pytest.mark.parametrize("stop", [3, 4, 5, 7, 8, 11])
def test_a_resume_goes_on_measuring(ranks2: RankPool, stop: int) -> None:
    ranks2.run(resumed, stop)


def measured_alone() -> Measured:
    return Loop(LocalSGD(period=2), every=1).run(4).measured


def test_a_rank_alone_has_nobody_to_differ_from() -> None:
    assert measured_alone() == {}
