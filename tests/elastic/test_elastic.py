"""Replicas that meet: with nobody lost they do what ordinary ranks do, and what is undone leaves nothing behind."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pieces
import pytest
import torch
import torch.distributed as dist

pytest.importorskip("torchft", reason="torchft is not installed: pip install 'ddp_agent[elastic]'")

from elastic_loops import ElasticLoop
from elastic_runs import coordinator
from loops import Loop, norm_net, refusal, sgd
from rank_pool import RankPool
from torch import Tensor

from ddp_agent.distributed.ledger import CommError
from ddp_agent.reducers import Dense, Int8, Reducer
from ddp_agent.sync import (
    AllReduce,
    Compressed,
    Hierarchical,
    LocalSGD,
    PostLocalSGD,
    StreamingDiLoCo,
    SyncStrategy,
)

pytestmark = pytest.mark.exhaustive
Make = tuple[Callable[[], SyncStrategy], Callable[[], Reducer]]
LISTENING = "0A"  # in /proc/net/tcp
STEPS = 11  # two periods, and a part of one for the flush
OPTIONS: dict[str, dict[str, Any]] = {"local_sgd": {"optimizer_state": "average"}, "streaming_diloco": {"delay": 0}}
MODES: dict[str, Make] = {
    **{
        name: (make, Dense)
        for name in pieces.MODES
        if refusal((make := partial(pieces.MODES[name], **OPTIONS.get(name, {})))(), on_rank_loss="continue") is None
    },
    **{f"diloco {name}": (pieces.MODES["diloco"], make) for name, make in pieces.REDUCERS.items() if name != "dense"},
}


@contextlib.contextmanager
def coordinators(count: int, lost_after_s: float = 1.0) -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(coordinator(lost_after_s=lost_after_s)).address for _ in range(count)]


def loop_options(name: str) -> dict[str, Any]:
    return {"model": norm_net, "optimizer": sgd(momentum=0.9), "reducer": MODES[name][1]()}


def counted(loop: Loop) -> dict[str, Any]:
    return {key: value for key, value in asdict(loop.topology.world.stats).items() if not key.endswith("_s")}


def ordinary(name: str) -> tuple[Tensor, dict[str, Any]]:
    loop = Loop(MODES[name][0](), **loop_options(name)).run(STEPS).flush()
    return loop.flat.everything.clone(), counted(loop)


# On the ranks.


def both_ways(addresses: list[str]) -> list[str]:
    """The names of modes in which replicas end otherwise, or count other bytes, than ordinary ranks do."""
    number, count = dist.get_rank(), dist.get_world_size()
    expected = {name: ordinary(name) for name in MODES}
    dist.barrier()
    dist.destroy_process_group()
    wrong = []
    for name, address in zip(MODES, addresses, strict=True):
        loop = ElasticLoop(MODES[name][0](), address, number, count, **loop_options(name))
        loop.run(STEPS).flush().end()
        weights, traffic = expected[name]
        if not torch.equal(loop.flat.everything, weights):
            wrong.append(f"{name}: {(loop.flat.everything - weights).abs().max()}")
        if counted(loop) != traffic:
            wrong.append(f"{name}: {counted(loop)}, not {traffic}")
    return wrong


def fails_once(addresses: list[str]) -> list[str]:
    """Replica 1 fails in its second synchronisation after all have changed their state; all do it again."""
    number, count = dist.get_rank(), dist.get_world_size()
    names = [name for name in MODES if MODES[name][0]().traits.sends != "nothing"]
    expected = {name: ordinary(name) for name in names}
    dist.barrier()
    dist.destroy_process_group()
    wrong = []
    for name, address in zip(names, addresses, strict=False):
        loop = ElasticLoop(MODES[name][0](), address, number, count, **loop_options(name))
        tries = _fail_once(loop, step=8) if number == 1 else []
        loop.run(STEPS).flush().end()
        if not torch.equal(loop.flat.everything, expected[name][0]):
            wrong.append(f"{name}: {(loop.flat.everything - expected[name][0]).abs().max()}")
        if tries not in ([], [8, 8]):
            wrong.append(f"{name}: step 8 was synchronised {len(tries)} times")
    return wrong


def _fail_once(loop: ElasticLoop, step: int) -> list[int]:
    after_step, tries = loop.sync.after_step, list[int]()

    def failing(now: int) -> None:
        after_step(now)
        if now == step:
            tries.append(now)
            if len(tries) == 1:
                raise CommError("made up")

    loop.sync.after_step = failing  # type: ignore[method-assign, assignment]
    return tries


def one_leaves(address: str) -> tuple[bool, dict[str, int], int, list[int]]:
    """Replica 1 of 3 stops after step 6 of a period of 4; what the others have after step 8 is their own mean."""
    number, count = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    loop = ElasticLoop(LocalSGD(period=4), address, number, count).run(6)
    if number == 1:
        loop.die()
        return True, {}, 0, []
    loop.run(1)
    loop.take_step()  # step 8, and what each has before the synchronisation
    own = loop.weights
    loop.replica_group.run_collective(loop, lambda: loop.sync.after_step(8), "sync")
    gathered = torch.stack(
        loop.replica_group.run_collective(loop, lambda: loop.topology.world.all_gather(own), "measurement")
    )
    right = torch.equal(loop.weights, gathered.sum(0).mul_(1 / 2))
    loop.run(2).flush().end()
    (change,) = loop.replica_group.changes
    assert (change.members, list(change.lost)) == ([0, 2], [1])
    return right, loop.replica_group.facts(), change.lost[1], counted(loop)["calls"]


def one_comes_back(addresses: dict[str, str]) -> dict[str, Tensor]:
    """Replica 2 stops after step 6, and asks to join when the others are in step 13; they have met without it."""
    number, count = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    ends = {}
    for name, address in addresses.items():
        loop = ElasticLoop(MODES[name][0](), address, number, count, **loop_options(name)).run(6)
        store = loop.replica_group._membership.store
        if number == 2:
            loop.die()
            store.wait(["step 13"])
            store.set("asking", "")
            loop = ElasticLoop(MODES[name][0](), address, number, count, **loop_options(name))
            assert (loop.joined, loop.step) == (True, 14 if name == "streaming_diloco" else 16)
        else:
            loop.run(7)
            store.set("step 13", "")
            store.wait(["asking"])
            time.sleep(0.5)  # it imports nothing any more
        loop.run(23 - loop.step).flush().end()
        ends[name] = loop.flat.everything.clone()
        if number != 2:
            assert loop.replica_group.facts() == {"replicas_at_end": 3, "replicas_lost": 1, "replicas_joined": 1}
    return ends


# The tests.


def test_with_nobody_lost_replicas_are_ranks_bit_for_bit(ranks3: RankPool) -> None:
    with coordinators(len(MODES)) as addresses:
        assert ranks3.run(both_ways, addresses, timeout_s=120) == [[]] * 3


def test_what_one_could_not_finish_is_undone_by_all_and_done_again(ranks3: RankPool) -> None:
    with coordinators(len(MODES)) as addresses:
        assert ranks3.run(fails_once, addresses, timeout_s=120) == [[]] * 3


def test_the_others_average_among_themselves(ranks3: RankPool) -> None:
    with coordinators(1, lost_after_s=3.0) as (address,):  # within 1 s of a busy machine a live one may be silent
        first, _, last = ranks3.run(one_leaves, address, timeout_s=60)
    assert first == last
    right, facts, last_seen, _ = first
    assert right
    assert facts == {"replicas_at_end": 2, "replicas_lost": 1, "replicas_joined": 0}
    assert last_seen in (4, 5, 6)  # it shows it at meetings and five times a second, and six steps take no time


def test_one_that_comes_back_joins_with_the_current_state(ranks3: RankPool) -> None:
    names = ["local_sgd", "diloco", "diloco int8", "diloco powersgd", "slowmo", "streaming_diloco"]
    with coordinators(len(names)) as addresses:
        first, *others = ranks3.run(one_comes_back, dict(zip(names, addresses, strict=True)), timeout_s=120)
    for name in names:
        assert first[name].isfinite().all()
        assert all(torch.equal(first[name], other[name]) for other in others), name


@pytest.mark.parametrize(
    ("sync", "remedy"),
    [
        (AllReduce(), "sync=local_sgd"),
        (Compressed(), "sync=local_sgd"),
        (PostLocalSGD(period=4, switch_step=2), "sync=local_sgd"),
        (Hierarchical(node_period=1, global_period=4), "sync=local_sgd"),
        (Hierarchical(node_period=2, global_period=4), "sync=local_sgd"),
        (StreamingDiLoCo(period=4, delay=1), "sync.delay=0"),
    ],
)
def test_modes_that_need_every_rank_are_refused(sync: SyncStrategy, remedy: str) -> None:
    refused = refusal(sync, on_rank_loss="continue")
    assert refused and type(sync).__name__ in refused and remedy in refused


def test_modes_with_a_period_are_not() -> None:
    few = {"local_sgd", "parameter_update", "diloco", "slowmo", "streaming_diloco", "gossip", "easgd", "independent"}
    assert few <= set(MODES)


def test_what_the_owner_of_a_chunk_owes_goes_to_its_residual() -> None:
    """Its chunk is the second of three; the mean that lacks it will be over two ranks."""
    part = Int8(block=4).for_tensor([torch.Size([12])])
    part.residual, part.second = torch.ones(12), torch.tensor([1.0, 2.0, 3.0, 4.0])
    part.regroup(1, 3, 2)
    assert part.second is None
    assert part.residual.tolist() == [1, 1, 1, 1, 3, 5, 7, 9, 1, 1, 1, 1]
    common = part.common_state()
    assert (common["residual"], common["second"]) == (None, None)


def test_the_coordinator_listens_on_the_loopback_alone() -> None:
    """torch's store, started as it comes, listens on every interface."""
    with coordinator() as kept:
        ports = {int(kept.address.rpartition(":")[2]), int(kept.lighthouse.rpartition(":")[2])}
        found = {}
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                host, _, port = local.partition(":")
                if state == LISTENING and int(port, 16) in ports:
                    found[int(port, 16)] = host
    assert found == dict.fromkeys(ports, "0100007F")
