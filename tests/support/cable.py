"""Two networks on this machine with a cable between them that can be pulled, and a run with a rank on each end."""

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fault_points import Fault
from forked_torchrun import Torchrun

from ddp_agent.distributed.c10d import TCPStore

NEW_MOUNTS, NEW_NETWORK = 1 << 17, 1 << 30  # CLONE_NEWNS, CLONE_NEWNET of linux/sched.h
ENDS = ("10.98.7.1", "10.98.7.2")
HOSTS = "127.0.0.1 localhost\n" + "".join(f"{end} {end}\n::ffff:{end} {end}\n" for end in ENDS)


def why_not() -> str | None:
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "needs ip and tc (package iproute2)"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "needs root, for network namespaces"


class Cable:
    """The networks are held by descriptors of this process alone: they go when it ends, however that happens."""

    def __init__(self) -> None:
        self._networks = [_elsewhere(_new_network), _elsewhere(_new_network)]
        self.within(0, f"ip link add eth0 type veth peer name eth0 netns {self.path(1)}")
        for end, address in enumerate(ENDS):
            self.within(end, "ip link set lo up")
            self.within(end, f"ip address add {address}/24 dev eth0")
            self.within(end, "ip link set eth0 up")

    def path(self, end: int) -> str:
        return f"/proc/{os.getpid()}/fd/{self._networks[end]}"

    def within(self, end: int, command: str) -> None:
        """Runs a command in the network at that end."""

        def there() -> None:
            enter(self.path(end))
            subprocess.run(command.split(), check=True, capture_output=True)

        _elsewhere(there)

    def pull(self) -> None:
        """At the end of rank 1: rank 0 sees its interface lose the carrier."""
        self.within(1, "ip link set eth0 down")

    def mend(self) -> None:
        self.within(1, "ip link set eth0 up")

    def slow_down(self, rate: str) -> None:
        for end in range(2):
            self.within(end, f"tc qdisc add dev eth0 root tbf rate {rate} burst 1600b latency 20s")

    def close(self) -> None:
        for network in self._networks:
            os.close(network)


class CabledRun(Torchrun):
    """A torchrun at each end, with a rank each, that hear nothing of each other: a rank must notice by itself."""

    tells_others = False

    def __init__(self, cable: Cable, folder: Path, typed: Sequence[str], faults: Sequence[Fault] = ()) -> None:
        self._cable = cable
        super().__init__(folder, 2, typed, faults)

    def open_store(self) -> TCPStore:
        def there() -> TCPStore:
            move(self._cable.path(0), self._folder)
            return Torchrun.open_store(self)

        store: TCPStore = _elsewhere(there)
        return store

    def variables(self, rank: int) -> dict[str, Any]:
        node = {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": rank, "MASTER_ADDR": ENDS[0]}
        network = {"GLOO_SOCKET_IFNAME": "eth0", "NETWORK_OF_TEST": self._cable.path(rank)}
        return super().variables(rank) | node | network

    def wait_for_step(self, step: int) -> None:
        while not _reached(self.run_dir / "metrics.jsonl", step):
            assert all(rank.is_alive() for rank in self.ranks), self.said()
            time.sleep(0.02)


def move(network: str, folder: Path) -> None:
    """This thread, and those that it starts, are in that network from now on, and its addresses have names.

    Else somebody would ask a name server that cannot be reached, for ten seconds at each connection.
    """
    _system("unshare", NEW_MOUNTS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for name, text in (("hosts", HOSTS), ("resolv.conf", "")):
        (folder / name).write_text(text)
        subprocess.run(["mount", "--bind", folder / name, f"/etc/{name}"], check=True)
    enter(network)


def enter(network: str) -> None:
    descriptor = os.open(network, os.O_RDONLY)
    try:
        _system("setns", descriptor, NEW_NETWORK)
    finally:
        os.close(descriptor)


def _new_network() -> int:
    _system("unshare", NEW_NETWORK)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _elsewhere(work: Callable[[], Any]) -> Any:
    """Call in a thread of its own, whose namespaces end with it."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result()


def _reached(metrics: Path, step: int) -> bool:
    return metrics.exists() and f'"step": {step},' in metrics.read_text()


def _system(call: str, *arguments: int) -> None:
    """A call of libc that Python 3.11 has no function for."""
    if getattr(ctypes.CDLL(None, use_errno=True), call)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), call)
