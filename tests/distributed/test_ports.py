"""Ports on which processes listen, as the kernel reports them."""

import os
import socket
import sys

import pytest

from ddp_agent.distributed import ports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/tcp")


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("0100007F:1F90", "127.0.0.1", True),
        ("00000000:1F90", "0.0.0.0", False),
        ("0A62070A:1F90", "10.7.98.10", False),
        ("00000000000000000000000001000000:1F90", "::1", True),
        ("00000000000000000000000000000000:1F90", "::", False),
        ("B80D0120000000000000000001000000:1F90", "2001:db8::1", False),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the texts are a little-endian machine's")
def test_addresses_are_read_as_the_kernel_writes_them(text: str, address: str, loopback: bool) -> None:
    port = ports._port(text)
    assert (str(port.address), port.number, port.loopback) == (address, 8080, loopback)


def test_open_ports_of_this_process_are_described() -> None:
    this = {"this": os.getpid()}
    with socket.create_server(("127.0.0.1", 0)) as near, socket.create_connection(near.getsockname()):
        number = near.getsockname()[1]
        assert number in [port.number for port in ports.open_ports(os.getpid()) if port.loopback]
        text = ports.describe(this)
        assert text.startswith("Open ports: this ")
        assert f"{number} (loopback)" in text
        with socket.create_server(("", 0)) as far:
            text = ports.describe(this)
            assert f"{far.getsockname()[1]} (all interfaces)" in text
            assert "Ports have no password: use a private network" in text
    assert number not in [port.number for port in ports.open_ports(os.getpid())]


def test_a_process_that_is_gone_has_no_ports() -> None:
    assert ports.describe({"nobody": 2**22 + 1}) == ""
