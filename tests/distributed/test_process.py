"""A rank's process: torchrun's variables, the death of its parent, and its end."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from test_process_group import TORCHRUN

from ddp_agent.distributed.process import TorchrunEnvironment, without_torchrun


def test_the_environment_is_read_from_torchrun_s_variables() -> None:
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    environment = TorchrunEnvironment.read(variables | {"LOCAL_WORLD_SIZE": "4"})
    assert environment == TorchrunEnvironment(rank=5, local_rank=1, world_size=8, local_world_size=4, node_rank=1)
    assert not environment.single_node
    assert TorchrunEnvironment.read(variables) == TorchrunEnvironment(
        rank=5, local_rank=1, world_size=8, local_world_size=8
    )
    assert TorchrunEnvironment.read({"PATH": "/bin", "MASTER_ADDR": "h"}) is None


def test_a_nested_torchrun_inherits_nothing_of_the_outer_one() -> None:
    outer = dict.fromkeys((*TORCHRUN, "GROUP_RANK", "ROLE_NAME", "TORCHELASTIC_RUN_ID"), "x")
    assert without_torchrun(outer | {"PATH": "/bin", "OMP_NUM_THREADS": "1"}) == {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "1",
    }


CHILD = """
import time
from ddp_agent.distributed.process import die_with_parent
die_with_parent()
print("ready", flush=True)
time.sleep(600)
"""


PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_a_killed_parent_takes_its_rank_along() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        parent.communicate(timeout=30)  # ends when nobody holds the pipe: the child is gone too
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


LEAVES = """
import atexit, gc, sys, threading, time
from ddp_agent.distributed.process import leave

class Held:
    def __del__(self):
        print("taken apart")

held = Held()
atexit.register(print, "hook")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print("last words")
print("on stderr", file=sys.stderr)
leave(7)
"""


def test_a_rank_leaves_with_all_said_and_nothing_taken_apart() -> None:
    """Taking the interpreter apart is when a thread of gloo that still holds a tensor makes torch abort."""
    left = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=60, check=False)
    assert (left.returncode, left.stdout.split("\n")) == (7, ["last words", "thread", "hook", ""])
    assert left.stderr == "on stderr\n"
