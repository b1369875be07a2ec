#!/usr/bin/env python3
"""Several nodes on one machine, joined by links that are really as slow as you say.

  python launch/netlab.py --nodes 4 --rate 100mbit -- train.py sync=diloco
  python launch/netlab.py --nodes 2 --rate 1gbit -- train.py -m sync=allreduce,local_sgd seed=0,1

What follows -- is a Python script as you would start it by `python`, one that lets ddp_agent.cli start its ranks:
a run becomes a torchrun on every node, a sweep one after the other. summary.json then has link_bytes, what the kernel
saw rank 0's node send while it trained. Ctrl-C and SIGTERM reach the run as they would without nodes.

Needs Linux, ip and tc (package iproute2), and root or the right to make user namespaces. There is no way out of this
network: data must be on the disk. PYTHON chooses the interpreter (default: the one that runs this).
"""

import argparse
import ctypes
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

# All of it lives in namespaces of its own (processes, network, mounts), whose first process dies with this one: then
# the kernel kills the others and removes the network, whoever was killed and however. Nothing of it is on the disk.
#
#   netlab.py                   waits, and hands signals on
#     netlab.py                 process 1: builds the network, and starts
#       train.py                the run's check, or the sweep's jobs one after the other; a job becomes
#         netlab.py --on-nodes  train.py on every node, each of which becomes torchrun
#
# A node has a network and a host name of its own. The switch that joins them is the network of process 1.

EXIT_REFUSED = 2
TOLD = (2, 3, 4, 5, 75)  # exit codes of a run that has said why it ended: see ddp_agent/cli/relaunch.py
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.1
NOTICE_S = 15.0  # for the other nodes to notice that one has failed
GRACE_S = 60.0  # for the ranks of a node that is told to stop

MAX_NODES = 254  # of a network whose addresses differ in the last byte
ADDRESS = "10.98.7.{}"
RATES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
MIN_RATE, MAX_RATE = 8 * 10**3, 100 * 10**9  # bits/s; beyond it a token bucket of tc rounds its burst to nothing
MIN_BURST = 32 * 1024  # bytes; smaller than 64 kB, so that the kernel cuts its large segments into packets
BURST_S = 1e-3  # where that is more: what a link may send at once after a pause
QUEUE = "400ms"  # how long a packet may wait before it is dropped

NEW_MOUNTS, NEW_HOST_NAME, NEW_USER, NEW_PROCESSES, NEW_NETWORK = 1 << 17, 1 << 26, 1 << 28, 1 << 29, 1 << 30
PR_SET_PDEATHSIG = 1  # linux/prctl.h

ON_NODES = "DDP_AGENT_ON_NODES"  # see ddp_agent/cli/relaunch.py
LINK = "DDP_AGENT_LINK"  # see ddp_agent/training/link_bytes.py


class RefusedError(Exception):
    """The text is the whole message."""


def main() -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they wait until there is somebody to hand them on to
    if sys.argv[1:2] == ["--on-nodes"]:
        return on_nodes([int(descriptor) for descriptor in sys.argv[2].split(",")], sys.argv[3:])
    try:
        arguments = parse(sys.argv[1:])
        check(arguments.command)
        leave_the_machine()
    except RefusedError as refusal:
        print(f"netlab: {refusal}", file=sys.stderr)
        return EXIT_REFUSED
    if (lab := os.fork()) == 0:
        return first_process(arguments)
    on_signals(lambda number: os.kill(lab, number))
    return exit_code(os.waitstatus_to_exitcode(os.waitpid(lab, 0)[1]))


# What was typed


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RefusedError(message)


def parse(typed: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=node_count, required=True, metavar="N", help=f"2 to {MAX_NODES}")
    parser.add_argument("--rate", type=bits_per_s, required=True, help="of each link, in and out: 100mbit, 1.5gbit")
    parser.add_argument("--nproc-per-node", type=rank_count, default=1, metavar="N", help="ranks a node (default: 1)")
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').strip()} -- train.py [train.py's arguments]"
    split = typed.index("--") if "--" in typed else len(typed)
    arguments = parser.parse_args(typed[:split])
    arguments.command = typed[split + 1 :]
    return arguments


def node_count(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected 2 to {MAX_NODES}")
    return int(text)


def rank_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer >= 1")
    return int(text)


def bits_per_s(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)bit", text.lower())
    rate = round(float(match[1]) * RATES[match[2]]) if match else 0
    if not MIN_RATE <= rate <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected 8kbit to 100gbit, such as 100mbit")
    return rate


def check(command: Sequence[str]) -> None:
    """Raises RefusedError for what can be seen before anything is made."""
    if sys.platform != "linux":
        raise RefusedError(f"needs Linux's network namespaces, found {sys.platform}")
    if not command:
        raise RefusedError("no command: expected -- and a script with its arguments, such as -- train.py sync=diloco")
    if not Path(command[0]).is_file():
        raise RefusedError(f"{command[0]}: no such file; expected a Python script behind --, such as train.py")
    if LINK in os.environ or ON_NODES in os.environ:
        raise RefusedError("already inside of a netlab: start the run itself, without netlab.py")
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # some users' has only /usr/bin
    missing = [tool for tool in ("ip", "tc", "mount", "umount") if shutil.which(tool) is None]
    if missing:
        raise RefusedError(f"missing: {', '.join(missing)}; install iproute2 and util-linux")


# The network


def leave_the_machine() -> None:
    """From now on this process sees a network and mounts of its own, and its children are in a process namespace."""
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


def first_process(arguments: argparse.Namespace) -> int:
    """When it returns, the kernel ends all that it has started."""
    die_with_parent()
    os.setpgid(0, 0)  # Ctrl-C reaches everybody at once; here it comes once, from netlab
    try:
        descriptors = build(arguments.nodes, arguments.rate)
        command = [os.environ.get("PYTHON", sys.executable), *arguments.command]
        run = subprocess.Popen(command, env=environment(arguments, descriptors), preexec_fn=listen_to_signals)
    except subprocess.CalledProcessError as failed:
        print(f"netlab: {shlex.join(failed.cmd)}: {failed.stderr.strip()}", file=sys.stderr)
        return EXIT_REFUSED
    except OSError as error:
        print(f"netlab: {error}", file=sys.stderr)
        return EXIT_REFUSED
    on_signals(run.send_signal)
    return exit_code(run.wait())


def build(nodes: int, rate: int) -> list[int]:
    """A descriptor of each node's network, by which processes enter it."""
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
        limit("eth0", rate)  # what the node sends
        tool("ip link set eth0 up")
        system("setns", switch, NEW_NETWORK)
        tool(f"ip link set node{node} addrgenmode none master switch")
        limit(f"node{node}", rate)  # what it receives
        tool(f"ip link set node{node} up")
    return descriptors


def replace_names(nodes: int) -> None:
    """Every node finds the others by name, and nobody asks a name server that cannot be reached (10 s)."""
    hosts = ["127.0.0.1 localhost"]
    for node in range(nodes):
        hosts += [f"{address(node)} node{node}", f"::ffff:{address(node)} node{node}"]  # for IPv6 sockets as well
    tool("mount -t tmpfs tmpfs /tmp")  # for a moment, and only here
    for name, lines in (("hosts", hosts), ("resolv.conf", [])):
        if Path("/etc", name).exists():
            Path("/tmp", name).write_text("\n".join([*lines, ""]))
            tool(f"mount --bind /tmp/{name} /etc/{name}")
    tool("umount /tmp")


def limit(interface: str, rate: int) -> None:
    burst = max(MIN_BURST, round(rate / 8 * BURST_S))
    tool(f"tc qdisc add dev {interface} root tbf rate {rate}bit burst {burst}b latency {QUEUE}")


def environment(arguments: argparse.Namespace, descriptors: Sequence[int]) -> dict[str, str]:
    on_nodes = [sys.executable, str(Path(__file__).resolve()), "--on-nodes", ",".join(map(str, descriptors))]
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
    return ADDRESS.format(node + 1)


def this_network() -> int:
    return os.open("/proc/self/ns/net", os.O_RDONLY)


# A job


def on_nodes(descriptors: Sequence[int], command: Sequence[str]) -> int:
    """Runs a command on every node at once. Only the first one's output goes through as it is."""
    die_with_parent()
    os.environ.pop(ON_NODES, None)
    port = 10_000 + os.getpid() % 20_000  # a job's own, and below those that the kernel gives to connections
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
    for line in node.stdout or ():
        print(f"[node{number}] {line}", end="", file=sys.stderr, flush=True)


def wait_for_all(nodes: "Sequence[subprocess.Popen[str]]") -> int:
    """0, or the first code that tells why the run failed, or else the highest: ranks that lost their peers return 1."""
    due: list[tuple[float, int]] = []  # when to send which signal to those that are still there

    def tell(number: int) -> None:
        for node in nodes:
            node.send_signal(number)

    def stop(number: int) -> None:
        tell(number)
        due[:] = [(time.monotonic() + GRACE_S, signal.SIGKILL)]

    on_signals(stop)
    running, failed, left_alone = list(nodes), [], True
    while running:
        time.sleep(POLL_S)
        now = time.monotonic()
        for node in [node for node in running if node.poll() is not None]:
            running.remove(node)
            if node.returncode != 0 and left_alone:
                failed.append(exit_code(node.returncode))
                due = due or [(now + NOTICE_S, signal.SIGTERM), (now + NOTICE_S + GRACE_S, signal.SIGKILL)]
        while due and now > due[0][0]:
            left_alone = False
            tell(due.pop(0)[1])
    return next((code for code in failed if code in TOLD), max(failed, default=0))


# Processes and signals


def tool(command: str, pass_fds: Sequence[int] = ()) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, text=True, pass_fds=pass_fds)


def on_signals(do: Callable[[int], None]) -> None:
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: do(number))
    listen_to_signals()


def listen_to_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def die_with_parent() -> None:
    system("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def system(call: str, *arguments: int) -> None:
    """A call of libc that Python 3.11 has no function for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)


if __name__ == "__main__":
    sys.exit(main())
