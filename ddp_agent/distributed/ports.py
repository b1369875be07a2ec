"""Ports on which a run's processes listen, read from Linux's /proc. Elsewhere nothing is known."""

import ipaddress
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LISTEN = "0A"  # include/net/tcp_states.h


class Port(NamedTuple):
    """An address on which a process listens."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    number: int

    @property
    def loopback(self) -> bool:
        """True when other machines cannot reach it."""
        return self.address.is_loopback

    def __str__(self) -> str:
        where = "all interfaces" if self.address.is_unspecified else "loopback" if self.loopback else self.address
        return f"{self.number} ({where})"


def open_ports(process: int) -> list[Port]:
    """Return the ports of one process, without its children's."""
    sockets, ports = set(), []
    with suppress(OSError):  # the process has ended, or belongs to another user
        for link in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                sockets.add(os.readlink(link))
    for table in ("tcp", "tcp6"):
        with suppress(OSError):  # a kernel without IPv6
            for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and f"socket:[{fields[9]}]" in sockets:
                    ports.append(_port(fields[1]))
    return sorted(ports, key=str)


def describe(processes: Mapping[str, int]) -> str:
    """Return a log line about the open ports of processes, given by name and id; empty where nothing is known."""
    ports = {name: found for name, process in processes.items() if (found := open_ports(process))}
    text = "Open ports: " + ", ".join(f"{name} {' and '.join(map(str, found))}" for name, found in ports.items())
    if not all(port.loopback for found in ports.values() for port in found):
        text += (
            ". Ports have no password: use a private network, or python train.py, which listens on loopback alone; "
            "see SECURITY.md"
        )
    return text if ports else ""


def _port(text: str) -> Port:
    """Return the port of a text such as `0100007F:1F90`, whose address is words of 32 bits in the machine's order."""
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[start : start + 8]) for start in range(0, len(address), 8)]
    ordered = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return Port(ipaddress.ip_address(ordered), int(port, 16))
