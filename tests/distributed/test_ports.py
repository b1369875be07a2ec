"""Ports that processes listen at, as the kernel tells it."""

import os
import socket
import sys

import pytest

from ddp_agent.distributed import ports as sockets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/tcp")


@pytest.mark.parametrize(
    ("text", "address", "private"),
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
def test_addresses_are_read_as_the_kernel_writes_them(text: str, address: str, private: bool) -> None:
    port = sockets._port(text)
    assert (str(port.address), port.number, port.private) == (address, 8080, private)


def test_what_this_process_listens_at_is_found_and_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as near, socket.create_connection(near.getsockname()):
        number = near.getsockname()[1]
        assert number in [port.number for port in sockets.listening(os.getpid()) if port.private]
        told = sockets.told({"this": os.getpid()})
        assert told.startswith("listening: this at ")
        assert f"this at 127.0.0.1 port {number}" in told
        far = socket.create_server(("", 0))
        with far:
            told = sockets.told({"this": os.getpid()})
            assert f"this at every address, port {far.getsockname()[1]}" in told
            assert "needs a private network" in told
    assert number not in [port.number for port in sockets.listening(os.getpid())]


def test_of_a_process_that_is_gone_nothing_is_told() -> None:
    assert sockets.told({"nobody": 2**22 + 1}) == ""
