"""The store of a run on one machine, which listens on the loopback interface alone. Imports torch when it opens one."""

import errno
import socket
from typing import TYPE_CHECKING

from ddp_agent.errors import UnreachableError

if TYPE_CHECKING:
    from ddp_agent.distributed.c10d import TCPStore

ADDRESSES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}
CONNECT_S = 5.0
BACKLOG = 2048  # connections to the store that may wait to be accepted; torch's own value


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address of this machine. Raise UnreachableError, with the remedy."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise UnreachableError(f"{join(host, port)}: {_remedy(error)}") from error


def join(host: str, port: int) -> str:
    """Return HOST:PORT, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """Return the host and the port of HOST:PORT or [HOST]:PORT. Raise ValueError for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and int(port[:6]) < 2**16):
        raise ValueError(f"found {address[:80]!r}, expected HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def open_store() -> "tuple[str, TCPStore]":
    """Return a loopback address of this machine, IPv4 where there is one, and a store that listens on it alone.

    torchrun's own store listens on every interface. In the process that holds this store torchrun opens none, since
    the tenants of a process share the store of a port.
    """
    problems = []
    for host in ADDRESSES:
        try:
            listener = listen(host, 0)
        except UnreachableError as error:
            problems.append(str(error))
            continue
        try:  # an interface that is down can be bound, and torch would try to connect for minutes
            socket.create_connection(listener.getsockname()[:2], timeout=CONNECT_S).close()
        except OSError as error:
            listener.close()
            problems.append(f"{host}: {error.strerror or error}")
            continue
        return host, store_at(host, listener, multi_tenant=True)
    raise UnreachableError("no loopback address: " + "; ".join(problems) + "; try: ip link set lo up")


def store_at(host: str, listener: socket.socket, *, multi_tenant: bool = False) -> "TCPStore":
    """Return a store that serves at a socket. Raise UnreachableError when it cannot be reached."""
    from torch.distributed import DistError

    from ddp_agent.distributed.c10d import TCPStore

    port = listener.getsockname()[1]
    try:
        return TCPStore(
            host,
            port,
            None,
            True,
            wait_for_workers=False,
            multi_tenant=multi_tenant,
            master_listen_fd=listener.detach(),
        )
    except (DistError, OSError) as error:
        raise UnreachableError(
            f"{join(host, port)}: a store there cannot be reached: {error}".splitlines()[0]
        ) from error


def _remedy(error: OSError | OverflowError) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return "in use by another process; choose another port, or 0 for a free one"
    if number in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return "no such address on this machine"
    if number in (socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_NODATA):
        return "the name does not resolve; use an address"
    if number == errno.EACCES:
        return "not permitted; choose a port above 1023"
    return str(getattr(error, "strerror", None) or error)
