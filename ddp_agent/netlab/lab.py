"""The emulated network, and the run inside of it.

Everything lives in namespaces of its own (processes, network, mounts). Their first process dies with the netlab
process; then the kernel kills the other processes and removes the network, however netlab ended. Nothing is left on
the disk.

    netlab                    waits, and hands signals on
      netlab                  process 1: builds the network, and starts
        train.py              the check of a run, or the jobs of a sweep one after the other; a job becomes
          netlab --on-nodes   train.py on every node, each of which becomes torchrun

Each node has a network and a host name of its own. The switch that joins the nodes is the network of process 1.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ddp_agent.netlab.processes import (
    RefusedError,
    die_with_parent,
    exit_code,
    listen_to_signals,
    on_signals,
    system,
    tool,
)

ADDRESS = "10.98.7.{}"
MIN_BURST = 32 * 1024  # bytes; smaller than 64 kB, so that the kernel cuts its large segments into packets
BURST_S = 1e-3  # a link may send the bytes of this time at once after a pause, where that is more than MIN_BURST
QUEUE = "400ms"  # a packet that has waited longer is dropped

NEW_MOUNTS, NEW_HOST_NAME, NEW_USER, NEW_PROCESSES, NEW_NETWORK = 1 << 17, 1 << 26, 1 << 28, 1 << 29, 1 << 30

ON_NODES = "DDP_AGENT_ON_NODES"  # see ddp_agent/cli/relaunch.py
ON_NODES_OPTION = "--on-nodes"
LINK = "DDP_AGENT_LINK"  # see ddp_agent/training/link_bytes.py


def leave_the_machine() -> None:
    """Give this process a network and mounts of its own, and its children a process namespace.

    Raise RefusedError where the user may not make namespaces.
    """
    alone = NEW_NETWORK | NEW_MOUNTS | NEW_PROCESSES
    user, group = os.geteuid(), os.getegid()
    try:
        try:
            system("unshare", alone)
        except OSError:
            system("unshare", alone | NEW_USER)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError as error:
        raise RefusedError(
            f"may not make network namespaces ({error.strerror}): run it as root, in a container that is privileged, "
            "or allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns)"
        ) from error


def first_process(arguments: argparse.Namespace, refused: int) -> int:
    """Build the network, run the command in it and return its exit code, or `refused` where the network fails.

    When this process ends, the kernel kills every process that it started.
    """
    die_with_parent()
    os.setpgid(0, 0)  # a terminal sends Ctrl-C to a whole process group; here it comes once, from netlab
    try:
        descriptors = build(arguments.nodes, arguments.rate)
        command = [os.environ.get("PYTHON", sys.executable), *arguments.command]
        run = subprocess.Popen(command, env=environment(arguments, descriptors), preexec_fn=listen_to_signals)
    except subprocess.CalledProcessError as failed:
        print(f"netlab: {shlex.join(failed.cmd)}: {failed.stderr.strip()}", file=sys.stderr)
        return refused
    except OSError as error:
        print(f"netlab: {error}", file=sys.stderr)
        return refused
    on_signals(run.send_signal)
    return exit_code(run.wait())


def build(nodes: int, rate: int) -> list[int]:
    """Build the nodes and their links. Return one descriptor per node; a process enters the node's network by it."""
    tool("mount --make-rprivate /")
    tool("mount -t proc proc /proc")
    replace_names(nodes)
    switch = this_network()
    tool("ip link set lo up")
    tool("ip link add switch type bridge")
    tool("ip link set switch up")
    descriptors = []
    for node in range(nodes):
        system("unshare", NEW_NETWORK)
        descriptors.append(this_network())
        tool("ip link set lo up")
        tool(f"ip link add eth0 type veth peer name node{node} netns /proc/self/fd/{switch}", pass_fds=[switch])
        tool("ip link set eth0 addrgenmode none")  # IPv6 would announce itself on the link
        tool(f"ip address add {address(node)}/24 dev eth0")
        limit("eth0", rate)  # bytes that the node sends
        tool("ip link set eth0 up")
        system("setns", switch, NEW_NETWORK)
        tool(f"ip link set node{node} addrgenmode none master switch")
        limit(f"node{node}", rate)  # bytes that the node receives
        tool(f"ip link set node{node} up")
    return descriptors


def replace_names(nodes: int) -> None:
    """Let the nodes find each other by name. A name server, out of reach here, would cost 10 s per look-up."""
    hosts = ["127.0.0.1 localhost"]
    for node in range(nodes):
        hosts += [f"{address(node)} node{node}", f"::ffff:{address(node)} node{node}"]  # for IPv6 sockets as well
    tool("mount -t tmpfs tmpfs /tmp")  # for a moment, and only in this mount namespace
    for name, lines in (("hosts", hosts), ("resolv.conf", [])):
        if Path("/etc", name).exists():
            Path("/tmp", name).write_text("\n".join([*lines, ""]))
            tool(f"mount --bind /tmp/{name} /etc/{name}")
    tool("umount /tmp")


def limit(interface: str, rate: int) -> None:
    """Limit an interface to `rate` bits/s by a token bucket."""
    burst = max(MIN_BURST, round(rate / 8 * BURST_S))
    tool(f"tc qdisc add dev {interface} root tbf rate {rate}bit burst {burst}b latency {QUEUE}")


def environment(arguments: argparse.Namespace, descriptors: Sequence[int]) -> dict[str, str]:
    """Return the environment of the run, which tells ddp_agent.cli and torchrun about the nodes."""
    # By the folder's path: the interpreter need not have ddp_agent installed.
    on_nodes = [sys.executable, str(Path(__file__).resolve().parent), ON_NODES_OPTION, ",".join(map(str, descriptors))]
    return {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        ON_NODES: shlex.join(on_nodes),
        LINK: "eth0",
        "DDP_AGENT_LINK_RATE": str(arguments.rate),
        "DDP_AGENT_NPROC_PER_NODE": str(arguments.nproc_per_node),
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_SOCKET_IFNAME": "eth0",
        "PET_NNODES": str(arguments.nodes),  # torchrun reads PET_NNODES where --nnodes is not given
    }


def address(node: int) -> str:
    """Return the IPv4 address of a node."""
    return ADDRESS.format(node + 1)


def this_network() -> int:
    """Return a descriptor of the network that this process is in."""
    return os.open("/proc/self/ns/net", os.O_RDONLY)
