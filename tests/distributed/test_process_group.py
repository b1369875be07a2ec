"""The process group, and the agreement of ranks before it."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from rank_pool import RankPool
from torch import nn

from ddp_agent.cli import rank_process
from ddp_agent.distributed import process_group as runtime
from ddp_agent.distributed import rendezvous
from ddp_agent.distributed.c10d import HashStore, TCPStore
from ddp_agent.distributed.process import TorchrunEnvironment
from ddp_agent.distributed.run_secret import SignedStore
from ddp_agent.errors import ConfigError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def store() -> TCPStore:
    """The store that torchrun's agent serves during all attempts."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@contextlib.contextmanager
def _started_by_torchrun(rank: int, size: int, port: int, restarts: int = 0) -> Iterator[None]:
    """A new process of `rank`, as far as the runtime can tell."""
    if dist.is_initialized():  # the pool's; a rank that leaves early would break its peers' connections
        dist.barrier()
        dist.destroy_process_group()
    values = (rank, size, rank, size, "127.0.0.1", port)
    variables = {name: str(value) for name, value in zip(TORCHRUN, values, strict=True)}
    variables |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(restarts)}
    with patch.dict(os.environ, variables):
        rendezvous.connect.cache_clear()
        runtime._starts.clear()
        yield
    rendezvous.connect.cache_clear()


def _sum_over(ranks: runtime.Runtime) -> float:
    tensor = torch.tensor(float(ranks.rank + 1))
    dist.all_reduce(tensor)
    return tensor.item()


def _three_groups_in_one_process(port: int) -> list[float]:
    sums = []
    with _started_by_torchrun(dist.get_rank(), dist.get_world_size(), port):
        for _ in range(3):
            with runtime.start("cpu", timeout_s=20) as ranks:
                sums.append(_sum_over(ranks))
            assert not dist.is_initialized()
    return sums


def test_groups_may_follow_each_other_on_one_store(ranks3: RankPool, store: TCPStore) -> None:
    assert ranks3.run(_three_groups_in_one_process, store.port) == [[6.0, 6.0, 6.0]] * 3


def _leave_one_by_one(port: int, folder: str) -> bool:
    """Rank 0 is done at once, rank 1 only after a while: has rank 0 left before that?"""
    rank, done = dist.get_rank(), Path(folder, "done")
    with _started_by_torchrun(rank, dist.get_world_size(), port):
        ranks = runtime.start("cpu", timeout_s=20)
        if rank == 1:
            time.sleep(0.3)
            done.touch()
        ranks.stop()
        return done.exists()


def test_nobody_leaves_while_a_peer_is_busy(ranks2: RankPool, store: TCPStore, tmp_path: Path) -> None:
    assert ranks2.run(_leave_one_by_one, store.port, str(tmp_path)) == [True, True]


def _attempts(port: int) -> list[tuple[int, str, float]]:
    """On several nodes torchrun's own count of restarts differs from rank to rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    seen = []
    for restart in range(3):
        time.sleep(0.05 * ((rank + restart) % size))  # each time another rank comes first
        counted = restart if rank == 1 else 0
        with _started_by_torchrun(rank, size, port, counted), runtime.start("cpu", timeout_s=20) as ranks:
            agreed = rendezvous.connect().agree("key", f"{restart}/{rank}")
            seen.append((ranks.attempt, agreed, _sum_over(ranks)))
    return seen


def test_all_ranks_count_the_same_attempts_and_agree_across_them(ranks3: RankPool, store: TCPStore) -> None:
    first, *others = ranks3.run(_attempts, store.port)
    agreed = first[0][1]
    assert agreed in ("0/0", "0/1", "0/2")
    assert first == [(0, agreed, 6.0), (1, agreed, 6.0), (2, agreed, 6.0)]
    assert others == [first, first]


def _say(port: int, messages: Sequence[str], patience_s: float = 30.0) -> str:
    rank, size = dist.get_rank(), dist.get_world_size()
    said = io.StringIO()
    patience = patch.object(rank_process, "PATIENCE_S", patience_s)
    with _started_by_torchrun(rank, size, port), contextlib.redirect_stderr(said), patience:
        if rank == 0:
            time.sleep(0.2)  # the others find it first, and let rank 0 speak
        rank_process.print_once(rendezvous.connect(), messages[rank])
    return said.getvalue()


def test_what_all_ranks_found_is_said_once_and_by_rank_0(ranks3: RankPool, store: TCPStore) -> None:
    assert ranks3.run(_say, store.port, ["no such file"] * 3) == ["no such file\n", "", ""]
    assert ranks3.run(_say, store.port, ["no such file"] * 3) == ["", "", ""], "a restart repeats it"


def test_what_another_rank_found_alone_is_said_with_its_number(ranks2: RankPool, store: TCPStore) -> None:
    assert ranks2.run(_say, store.port, ["one thing", "another"], 0.3) == ["one thing\n", "rank 1: another\n"]


def _listening_addresses() -> list[str]:
    own = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    lines = [line.split() for file in ("tcp", "tcp6") for line in Path("/proc/net", file).read_text().splitlines()[1:]]
    return [fields[1].split(":")[0] for fields in lines if fields[3] == "0A" and f"socket:[{fields[9]}]" in own]


def _addresses_of_a_run(port: int) -> tuple[str, list[str]]:
    with _started_by_torchrun(dist.get_rank(), dist.get_world_size(), port):
        os.environ.pop("GLOO_SOCKET_IFNAME", None)  # the pool's
        with runtime.start("cpu", timeout_s=20) as ranks:
            _sum_over(ranks)
            return os.environ["GLOO_SOCKET_IFNAME"], _listening_addresses()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/tcp")
def test_a_run_on_one_machine_listens_on_loopback_only(ranks2: RankPool, store: TCPStore) -> None:
    for interface, addresses in ranks2.run(_addresses_of_a_run, store.port):
        assert interface == "lo", "also where the machine's name resolves to another address"
        assert set(addresses) == {"0100007F"}, "127.0.0.1 as the kernel writes it"


def _ddp_alone() -> tuple[int, int, float]:
    dist.destroy_process_group()
    rendezvous.connect.cache_clear()
    with runtime.start("cpu") as ranks:
        model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
        model(torch.ones(1, 1)).sum().backward()
        return ranks.rank, ranks.world_size, _sum_over(ranks)


def test_one_process_without_torchrun_has_a_group(ranks1: RankPool) -> None:
    assert ranks1.run(_ddp_alone) == [(0, 1, 1.0)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="device: found 'cuda'"):
        runtime._device("cuda", TorchrunEnvironment())
    assert runtime._device("auto", TorchrunEnvironment()).type == "cpu"


@pytest.mark.parametrize(
    ("gpus", "backend"),
    [
        (["a/1", "a/2"], "nccl"),
        (["a/1", "b/1"], "nccl"),  # the same GPU number, on two machines
        (["a/1", "a/1"], "gloo"),  # two ranks on one GPU
        (["", ""], "gloo"),
        (["a/1", ""], "gloo"),  # a node without GPUs
    ],
)
def test_nccl_needs_a_gpu_for_each_rank(
    gpus: list[str], backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime, "_identity", lambda device: gpus[0])
    others = SignedStore(HashStore(), "agreement")
    others.set("gpu/1", gpus[1])
    assert runtime._backend(torch.device("cpu"), TorchrunEnvironment(world_size=2), others, 60) == backend
    assert ("gloo instead of NCCL" in caplog.text) == (backend == "gloo" and any(gpus))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_rank_with_a_gpu_uses_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    rendezvous.connect.cache_clear()
    with runtime.start("auto") as ranks:
        tensor = torch.ones(1, device=ranks.device)
        dist.all_reduce(tensor)
        assert (ranks.backend, ranks.device.type, tensor.item()) == ("nccl", "cuda", 1.0)
