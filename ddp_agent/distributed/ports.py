"""Which ports of this machine a run listens at, as Linux's /proc tells it; elsewhere nothing is known."""

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
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    number: int

    @property
    def private(self) -> bool:
        """Whether other machines cannot reach it."""
        return self.address.is_loopback

    def __str__(self) -> str:
        everywhere = f"every address, port {self.number}"
        return everywhere if self.address.is_unspecified else f"{self.address} port {self.number}"


def listening(process: int) -> list[Port]:
    """Of one process, without its children."""
    if sys.platform != "linux":
        return []
    own = _inodes(process)
    return sorted((port for inode, port in _table().items() if inode in own), key=str)


def _inodes(process: int) -> set[str]:
    found = set()
    with suppress(OSError):  # it has ended, or belongs to somebody else
        for link in Path("/proc", str(process), "fd").iterdir():
            with suppress(OSError):
                found.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    return found


def _table() -> dict[str, Port]:
    """All listening TCP sockets, by inode."""
    found = {}
    for table in _TABLES:
        with suppress(OSError):  # a kernel without IPv6
            for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    found[fields[9]] = _port(fields[1])
    return found


def _port(text: str) -> Port:
    """`0100007F:1F90`: words of 32 bits in the machine's order."""
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[place : place + 8]) for place in range(0, len(address), 8)]
    ordered = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return Port(ipaddress.ip_address(ordered), int(port, 16))


def told(processes: Mapping[str, int]) -> str:
    """What to say of the ports of these processes; nothing where nothing is known."""
    ports = [(name, port) for name, process in processes.items() for port in listening(process)]
    text = "listening: " + ", ".join(f"{name} at {port}" for name, port in ports)
    if not all(port.private for _, port in ports):
        text += " (without a password: needs a private network; python train.py listens on loopback alone)"
    return text if ports else ""
