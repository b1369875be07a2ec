"""Replicas that are killed, stopped, and come back: real signals on real runs."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchft", reason="torchft is not installed: pip install 'ddp_agent[elastic]'")

import rank_pool
from elastic_loops import ElasticLoop
from elastic_runs import SMALL, coordinator, run, same, signal_file, summary, weights
from fault_points import Fault
from forked_torchrun import Outcome
from processes import with_variable
from torch import nn

from ddp_agent.distributed.process import REPLICA
from ddp_agent.sync import LocalSGD

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]
SLOW = Fault("step", "slow", rank=0)
HOLD = Fault("step", "hold", rank=0, step=21)
PERIOD = ("sync.period=8",)
PARAMETERS = 64 * 32 + 32 + 32 * 10 + 10


def _log(outcome: Outcome) -> str:
    return (outcome.run_dir / "train.log").read_text()


def all_reduced(syncs_of_sizes: dict[int, int]) -> int:
    """Wire bytes of so many synchronisations among so many, by the formula for a ring."""
    return sum(syncs * round(4 * PARAMETERS * 2 * (size - 1) / size) for size, syncs in syncs_of_sizes.items())


@pytest.mark.parametrize("mode", ["local_sgd", "diloco", "easgd"])
def test_loss_of_one_costs_its_steps_since_the_last_synchronisation(mode: str, tmp_path: Path) -> None:
    """Replica 2 has met the others after step 8 and is killed in step 13; the next of five meetings is after 16."""
    kill = Fault("step", "SIGKILL", rank=0, step=13)
    faults = {number: [SLOW, kill] if number == 2 else [SLOW] for number in range(4)}
    outcomes = run(tmp_path, 4, [*SMALL, f"sync={mode}", *PERIOD], faults)
    assert [it.codes for it in outcomes] == [[[0]], [[0]], [[-signal.SIGKILL]], [[0]]], outcomes[0].stderr
    survivors = [outcomes[number] for number in (0, 1, 3)]
    for survivor in survivors:
        told = re.findall(r"after step (\d+) replica 2 was lost, last seen in step (\d+): 3 are left", _log(survivor))
        assert len(told) == 1
        step, seen = map(int, told[0])
        assert step == 16 and 8 <= seen <= 13
        found = summary(survivor)
        assert (found["steps"], found["syncs"], found["replicas_at_end"], found["replicas_lost"]) == (40, 5, 3, 1)
        assert found["wire_bytes"] == all_reduced({4: 1, 3: 4})
        assert found["test_metric"] > 0.2  # it has learned something; chance is a tenth
        assert survivor.status["status"] == "finished"
    first, *others = [weights(it) for it in survivors]
    assert all(value.isfinite().all() for value in first.values())
    assert all(same(first, other) for other in others)


@pytest.mark.parametrize("mode", ["local_sgd", "diloco"])
def test_a_killed_replica_that_is_started_again_joins_with_the_current_model(mode: str, tmp_path: Path) -> None:
    """The others wait in step 21 until it asks, so that it joins after step 24, or, when it was quicker, after the
    evaluation at step 20 or the synchronisation of step 16."""
    kill, ask = Fault("step", "SIGKILL", rank=0, step=13), Fault("asking", "signal", rank=0, step=0, attempt=1)
    faults = {0: [SLOW, HOLD], 1: [SLOW, HOLD], 2: [SLOW, kill, ask]}
    outcomes = run(tmp_path, 3, [*SMALL, f"sync={mode}", *PERIOD], faults, restarts={2: 1})
    assert [it.codes for it in outcomes] == [[[0]], [[0]], [[-signal.SIGKILL], [0]]], outcomes[2].stderr
    (joined,) = map(int, re.findall(r"joined after step (\d+), beside replicas \[0, 1\]", _log(outcomes[2])))
    assert joined in (16, 20, 24)
    assert "replica 2 has joined: 3 are left" in _log(outcomes[0])
    first, *others = [weights(it) for it in outcomes]
    assert all(same(first, other) for other in others)
    without = sum(8 < step <= joined for step in range(8, 41, 8))
    assert summary(outcomes[0])["wire_bytes"] == all_reduced({3: 5 - without, 2: without})
    assert summary(outcomes[2])["test_metric"] == summary(outcomes[0])["test_metric"]


def test_a_replica_that_was_stopped_for_a_while_joins_again(tmp_path: Path) -> None:
    """The others go on without it; when it wakes up it finds that they did, and asks to join."""
    faults = {0: [SLOW, HOLD], 1: [SLOW, HOLD], 2: [SLOW, Fault("step", "SIGSTOP", rank=0, step=13)]}
    woken = threading.Thread(target=_wake_when_lost, args=(tmp_path,))
    woken.start()
    outcomes = run(tmp_path, 3, [*SMALL, "sync=local_sgd", *PERIOD], faults)
    woken.join()
    assert [it.codes for it in outcomes] == [[[0]]] * 3, outcomes[2].stderr
    assert "the others went on without this replica; it joins them again" in _log(outcomes[2])
    first, *others = [weights(it) for it in outcomes]
    assert all(same(first, other) for other in others)


def _wake_when_lost(folder: Path) -> None:
    log = folder / "replica-0" / "run" / "train.log"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if log.exists() and "replica 2 was lost" in log.read_text():
            os.kill(_pid(folder / "replica-2" / "run"), signal.SIGCONT)
            time.sleep(2.0)  # it takes some steps to its next meeting, and asks
            signal_file(folder).touch()
            return


def _pid(run_dir: Path) -> int:
    """Return the process id of the run that holds the directory."""
    return int((run_dir / ".lock").read_text().split()[1])


# In the middle of an averaging: processes that hold nothing but a large tensor.

NUMBERS = 4_000_000


class _Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(NUMBERS))


def _replica(address: str, number: int, after_s: float, pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    loop = ElasticLoop(LocalSGD(period=1), address, number, 3, model=_Wide)
    with torch.no_grad():
        loop.flat.parameters.fill_([1.0, 2.0, 6.0][number])
    loop.step = 1

    def averaging() -> None:
        if number == 1:
            threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
        loop.sync.after_step(1)

    loop.replica_group.run_collective(loop, averaging, "sync")
    pipe.send(loop.weights.unique().tolist())
    loop.replica_group.run_collective(loop, lambda: None, "measurement")  # nobody leaves while another still reads


@pytest.mark.parametrize("after_s", [0.0, 0.004, 0.012, 0.03])
def test_killed_in_an_averaging_nothing_torn_is_kept(after_s: float) -> None:
    """The mean of three, if all had it whole, or of the two that are left, all through and on both."""
    context = rank_pool.forking()
    with coordinator() as kept:
        pipes, processes = [], []
        for number in range(3):
            ours, theirs = context.Pipe()
            process = context.Process(target=_replica, args=(kept.address, number, after_s, theirs))
            process.start()
            pipes.append(ours)
            processes.append(process)
        try:
            found = [pipes[number].recv() if pipes[number].poll(120) else None for number in (0, 2)]
        finally:
            for process in processes:
                process.kill()
                process.join()
    assert found[0] == found[1]
    assert found[0] in ([3.0], [3.5])


# The launcher.


def _wait_for(condition: Callable[[], Any], what: str, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_the_launcher_starts_a_killed_replica_again_and_leaves_nothing(tmp_path: Path) -> None:
    typed = ["sync=local_sgd", "sync.period=50", "max_steps=1000000", "device=cpu", "model.hidden=[8]", "timeout_s=20"]
    command = [str(ROOT / "launch/elastic.sh"), "--replicas", "2", "--dir", "out", "--lost-after-s", "2", "--", *typed]
    environment = {**os.environ, "PYTHON": sys.executable, "TORCHELASTIC_ERROR_FILE": ""}
    with open(tmp_path / "said.txt", "wb") as said:
        launcher = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said)
    out = tmp_path / "out"

    def told(text: str, number: int) -> bool:
        log = out / f"replica-{number}" / "train.log"
        return log.exists() and text in log.read_text()

    def text() -> str:
        return (tmp_path / "said.txt").read_text()

    try:
        _wait_for(lambda: (out / "replica-1" / "metrics.jsonl").exists(), text())
        address = re.findall(r"coordinator at ([\d.:]+)", text())[0]
        assert address.startswith("127.0.0.1:")
        os.kill(_pid(out / "replica-1"), signal.SIGKILL)
        _wait_for(lambda: told("replica 1 was lost", 0), text())
        _wait_for(lambda: told("joined after step", 1), text())
        assert "replica 1 ended with code 137; started again (1 of 3)" in text()
        launcher.send_signal(signal.SIGINT)
        launcher.wait(60)
    finally:
        launcher.kill()
        launcher.wait()
    assert with_variable(REPLICA[2], address) == []
    statuses = [json.loads((out / f"replica-{number}" / "status.json").read_text())["status"] for number in range(2)]
    assert statuses == ["preempted"] * 2
