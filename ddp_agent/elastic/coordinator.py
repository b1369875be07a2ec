"""The process that all replicas know: torchft's lighthouse, which knows who is alive, and a store.

The coordinator is trusted and must outlive the run, like torchrun's store. Lighthouse and store listen on one address
alone, by default the loopback. Torch's store by itself would listen on every interface, so it is given a socket.
"""

import socket

from ddp_agent.distributed.c10d import TCPStore

LIGHTHOUSE = "lighthouse"  # keys of the store
LOST_AFTER_S = "lost_after_s"
PATIENCE_S = "patience_s"


class Coordinator:
    """A lighthouse and a store that serve until `close`. `address` is HOST:PORT of the store.

    `lost_after_s`: how long a replica may send no heartbeat. `patience_s`: how long a replica that is alive may let the
    others wait in a round. Raises ImportError without torchft.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, lost_after_s: float, patience_s: float) -> None:
        from torchft.coordination import LighthouseServer  # an extra, and slow to import

        listener = socket.create_server((host, port), backlog=256)
        port = listener.getsockname()[1]
        fd = listener.detach()
        self.store = TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=fd)
        self._lighthouse = LighthouseServer(
            bind=f"{host}:0",
            min_replicas=1,
            join_timeout_ms=round(1000 * patience_s),
            quorum_tick_ms=50,
            heartbeat_timeout_ms=round(1000 * lost_after_s),
        )
        self.store.set(LOST_AFTER_S, str(lost_after_s))
        self.store.set(PATIENCE_S, str(patience_s))
        self.store.set(LIGHTHOUSE, f"http://{host}:{self._lighthouse.address().rpartition(':')[2]}")
        self.address = f"{host}:{port}"

    def close(self) -> None:
        """Stop the lighthouse. The store ends with its last reference."""
        self._lighthouse.shutdown()
