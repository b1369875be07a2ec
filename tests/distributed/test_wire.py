"""Counted bytes against what the kernel counts on a real link: a veth pair between two network namespaces."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ETC = Path("/etc/netns")

# One rank. Prints, for each way to send, what the interface sent and what was counted, in bytes.
RANK = """
import json, sys, torch, torch.distributed as dist
from pathlib import Path
from ddp_agent.distributed.process_group_comm import world_comm
from ddp_agent.distributed.process import leave
from ddp_agent.reducers import Cast, Dense, Int8, PowerSGD, Sign, Sparse, TopK

link, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method="tcp://10.98.9.1:29511", rank=rank, world_size=2)
comm = world_comm()
sent = lambda: int(Path(f"/sys/class/net/{link}/statistics/tx_bytes").read_text())
reducers = {"dense": Dense(), "bf16": Cast(dtype="bf16"), "int8": Int8(), "topk": TopK(ratio=0.1), "sign": Sign(),
            "powersgd": PowerSGD(rank=8), "fp16": Cast(dtype="fp16"), "sparse": Sparse(block=100)}
ways = {name: lambda x, r=r: r.mean_(x, comm) for name, r in reducers.items()}
ways["exchange"] = lambda x: comm.exchange(x, [1 - rank], [1 - rank])
ways["broadcast"] = lambda x: comm.broadcast_(x)
half = torch.arange(2000) % 2  # of the rows are zero, on both ranks
results = {}
for name, way in ways.items():
    way(torch.randn(2000, 1500))  # connections are made
    comm.barrier()
    before, counted = sent(), comm.stats.wire_bytes
    way(torch.randn(2000, 1500) * half.unsqueeze(1))
    comm.barrier()
    results[name] = (sent() - before, comm.stats.wire_bytes - counted)
print(json.dumps(results), flush=True)
dist.destroy_process_group()
leave(0)
"""


def may_make_namespaces() -> str | None:
    """Why not, or None."""
    if shutil.which("ip") is None:
        return "needs ip (package iproute2)"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return None if os.geteuid() == 0 and tried.returncode == 0 else "needs the right to make network namespaces (root)"


REASON = may_make_namespaces()


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """Two namespaces, joined by a link whose ends are called as they are."""
    names = (f"ddpA{os.getpid()}", f"ddpB{os.getpid()}")
    ends = ("ddpvA", "ddpvB")
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            # `ip netns exec` puts these in place of /etc's: else gloo asks a name server that is not there, for 10 s.
            (ETC / name).mkdir(parents=True)
            (ETC / name / "hosts").write_text("127.0.0.1 localhost\n10.98.9.1 first\n10.98.9.2 second\n")
            (ETC / name / "resolv.conf").write_text("")
        pair = f"link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}"
        subprocess.run(["ip", *pair.split()], check=True)
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            for command in (f"addr add 10.98.9.{number}/24 dev {end}", f"link set {end} up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *command.split()], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
            shutil.rmtree(ETC / name, ignore_errors=True)


def start(name: str, rank: int) -> subprocess.Popen[str]:
    link = f"ddpv{'AB'[rank]}"
    environment = os.environ | {"GLOO_SOCKET_IFNAME": link, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = ["ip", "netns", "exec", name, sys.executable, "-c", RANK, link, str(rank)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.exhaustive
def test_what_is_counted_is_what_the_link_carries(nodes: tuple[str, str]) -> None:
    """To 8 %: TCP/IP headers and acknowledgements come on top. A broadcast is counted where it is sent."""
    ranks = [start(name, rank) for rank, name in enumerate(nodes)]
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors[-2000:] for _, errors in outputs)
    results: list[dict[str, Any]] = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    for rank, measured in enumerate(results):
        for name, (sent, counted) in measured.items():
            if name == "broadcast" and rank == 1:
                assert counted == 0
                assert sent < 1e6  # acknowledgements
            else:
                assert counted > 1e5
                assert 1.0 <= sent / counted < 1.08, (name, sent, counted)
