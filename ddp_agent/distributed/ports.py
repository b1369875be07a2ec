"""Ports on which a run's processes listen, read from Linux's /proc. Elsewhere nothing is known."""

import ipaddress
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_LISTEN = "0A"  # include/net/tcp_states.h
_TABLES = ("tcp", "tcp6")


class Port(NamedTuple):
    """An address on which a process listens."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    number: int

    @property
    def loopback(self) -> bool:
        """True when other machines cannot reach it."""
        return self.address.is_loopback

    def __str__(self) -> str:
        if self.address.is_unspecified:
            return f"{self.number} (all interfaces)"
        return f"{self.number} ({'loopback' if self.loopback else self.address})"


def open_ports(process: int) -> list[Port]:
    """Return the ports of one process, without its children's."""
    if sys.platform != "linux":
        return []
    own = _inodes(process)
    return sorted((port for inode, port in _listening_sockets().items() if inode in own), key=str)


def describe(processes: Mapping[str, int]) -> str:
    """Return a log line about the open ports of processes, given by name and id; empty where nothing is known."""
    ports = {name: open_ports(process) for name, process in processes.items()}
    known = {name: " and ".join(map(str, its_ports)) for name, its_ports in ports.items() if its_ports}
    text = "Open ports: " + ", ".join(f"{name} {listed}" for name, listed in known.items())
    if not all(port.loopback for its_ports in ports.values() for port in its_ports):
        text += (
            ". Ports have no password: use a private network, or python train.py, which listens on loopback alone; "
            "see SECURITY.md"
        )
    return text if known else ""


def _inodes(process: int) -> set[str]:
    """Return the inodes of a process's sockets."""
    inodes = set()
    with suppress(OSError):  # the process has ended, or belongs to another user
        for link in Path("/proc", str(process), "fd").iterdir():
            with suppress(OSError):
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    return inodes


def _listening_sockets() -> dict[str, Port]:
    """Return all listening TCP sockets by inode."""
    ports = {}
    for table in _TABLES:
        with suppress(OSError):  # a kernel without IPv6
            for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    ports[fields[9]] = _port(fields[1])
    return ports


def _port(text: str) -> Port:
    """Return the port of a text such as `0100007F:1F90`, whose address is words of 32 bits in the machine's order."""
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[start : start + 8]) for start in range(0, len(address), 8)]
    ordered = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return Port(ipaddress.ip_address(ordered), int(port, 16))
