"""A job: one command started on every node at once."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from ddp_agent.netlab.lab import NEW_HOST_NAME, NEW_NETWORK, ON_NODES, address
from ddp_agent.netlab.processes import die_with_parent, exit_code, listen_to_signals, on_signals, system
from ddp_agent.outputs.streams import protect

SAID_BY_RANK = (2, 3, 4, 5, 75)  # exit codes of a run that has told the user why it ended: ddp_agent/cli/relaunch.py
POLL_S = 0.1
NOTICE_S = 15.0  # until the other nodes have noticed that one of them failed
GRACE_S = 60.0  # until a node that was asked to stop is killed


def on_nodes(descriptors: Sequence[int], command: Sequence[str]) -> int:
    """Run a command on every node and return the job's exit code. Node 0's output passes through unchanged."""
    die_with_parent()
    protect()  # a relay that stops reading would block its node
    os.environ.pop(ON_NODES, None)
    port = 10_000 + os.getpid() % 20_000  # the job's own, and below those that the kernel gives to connections
    os.environ |= {"PET_MASTER_ADDR": address(0), "PET_MASTER_PORT": str(port)}
    nodes = [start(node, descriptor, command) for node, descriptor in enumerate(descriptors)]
    relays = [threading.Thread(target=relay, args=each, daemon=True) for each in enumerate(nodes) if each[0] > 0]
    for thread in relays:
        thread.start()
    code = wait_for_all(nodes)
    for thread in relays:
        thread.join(NOTICE_S)
    return code


def start(node: int, descriptor: int, command: Sequence[str]) -> "subprocess.Popen[str]":
    """Start the command on one node. `descriptor` is process 1's descriptor of the node's network."""
    network = os.open(f"/proc/1/fd/{descriptor}", os.O_RDONLY)

    def enter() -> None:
        die_with_parent()
        listen_to_signals()
        system("setns", network, NEW_NETWORK)
        system("unshare", NEW_HOST_NAME)
        socket.sethostname(f"node{node}")

    environment = os.environ | {"PET_NODE_RANK": str(node)}
    out, err = (None, None) if node == 0 else (subprocess.PIPE, subprocess.STDOUT)
    return subprocess.Popen(
        command, preexec_fn=enter, env=environment, stdout=out, stderr=err, text=True, errors="replace"
    )


def relay(number: int, node: "subprocess.Popen[str]") -> None:
    """Print each line of a node's output to stderr, with the node's name before it."""
    for line in node.stdout or ():
        print(f"[node{number}] {line}", end="", file=sys.stderr, flush=True)


def wait_for_all(nodes: "Sequence[subprocess.Popen[str]]") -> int:
    """Wait for every node and return 0, the first code of SAID_BY_RANK, or else the highest code.

    A rank that lost its peers returns 1, so a code that gives the reason comes first. When a node fails the others
    have NOTICE_S to end by themselves; then they are asked to stop, and after GRACE_S they are killed.
    """
    due: list[tuple[float, int]] = []  # times at which the nodes that still run are sent a signal

    def send(number: int) -> None:
        for node in nodes:
            node.send_signal(number)

    def stop(number: int) -> None:
        send(number)
        due[:] = [(time.monotonic() + GRACE_S, signal.SIGKILL)]

    on_signals(stop)
    running, codes, signalled = list(nodes), [], False
    while running:
        time.sleep(POLL_S)
        now = time.monotonic()
        for node in [node for node in running if node.poll() is not None]:
            running.remove(node)
            if node.returncode != 0 and not signalled:
                codes.append(exit_code(node.returncode))
                due = due or [(now + NOTICE_S, signal.SIGTERM), (now + NOTICE_S + GRACE_S, signal.SIGKILL)]
        while due and now > due[0][0]:
            signalled = True
            send(due.pop(0)[1])
    return next((code for code in codes if code in SAID_BY_RANK), max(codes, default=0))
