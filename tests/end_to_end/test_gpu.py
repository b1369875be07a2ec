"""On a GPU: every mode with one rank on NCCL and with two that share the GPU through gloo; the host never waits."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import files
from mode_cases import ALL
from runs import ROOT
from short_periods import short
from torch import nn

from ddp_agent.distributed import process_group as runtime
from ddp_agent.distributed import rendezvous
from ddp_agent.distributed.process_group import Runtime
from ddp_agent.distributed.topology import Topology
from ddp_agent.reducers import Dense

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
# Each averaging kind once: gradients, and changes, through everything that sends in a way of its own.
REDUCERS = [(sync, reducer) for sync in ("compressed", "diloco") for reducer in files("reducer") if reducer != "dense"]


def train(run_dir: Path, ranks: int, *overrides: str) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"),
        *(str(ROOT / "train.py"), "device=cuda", "max_steps=40", f"hydra.run.dir='{run_dir}'", *overrides),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DDP_AGENT")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", files("sync"))
def test_every_mode_trains(tmp_path: Path, name: str, ranks: int) -> None:
    summary = train(tmp_path / "run", ranks, f"sync={name}", *short(name, period=4, switch_step=2))
    assert summary["device"] != "cpu"
    assert summary["test_metric"] > 0.5
    assert (summary["wire_bytes"] > 0) == (ranks > 1 and name != "independent")
    assert 0 <= summary["exposed_comm_s"] < summary["train_s"]


@pytest.mark.parametrize(("sync", "reducer"), REDUCERS)
def test_every_reducer_averages(tmp_path: Path, sync: str, reducer: str) -> None:
    summary = train(tmp_path / "run", 2, f"sync={sync}", f"reducer={reducer}", *short(sync, period=4, switch_step=2))
    assert summary["test_metric"] > 0.5


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    rendezvous.connect.cache_clear()
    with runtime.start("cuda") as started:
        yield started


@pytest.mark.parametrize("name", ALL)
def test_the_host_waits_for_nothing_in_a_step(ranks: Runtime, name: str) -> None:
    """One rank on NCCL: any synchronisation of the host with the GPU raises."""
    assert ranks.backend == "nccl"
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).to(ranks.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    sync = ALL[name]()
    wrapped = sync.setup(model, optimizer, Topology.create(), Dense())
    inputs, target = torch.randn(6, 5, device=ranks.device), torch.randn(6, 3, device=ranks.device)

    def run(steps: range) -> None:
        for step in steps:
            with sync.backward_context(step, last_micro_batch=True):
                nn.functional.mse_loss(wrapped(inputs), target).backward()
            sync.before_step(step)
            optimizer.step()
            sync.after_step(step)
            optimizer.zero_grad()

    run(range(1, 9))  # DDP and NCCL set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(range(9, 25))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
